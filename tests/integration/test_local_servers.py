"""The local servers come back when killed, keep what they acknowledged, and can be ended from any state."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from redis.asyncio import Redis

from infra.local.config import load_config
from infra.local.doctor import examine
from infra.local.specs import server_specs
from infra.local.stack import reset, start_servers, stop, supervisor_pid
from infra.supervision import registry


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[tuple[Path, dict[str, str]]]:
    state_dir = tmp_path / "state"
    env = await asyncio.to_thread(start_servers, state_dir, tied=True)
    yield state_dir, env
    await asyncio.to_thread(reset, state_dir, lambda _: None)


async def test_killed_servers_are_back_with_what_they_acknowledged(stack: tuple[Path, dict[str, str]]) -> None:
    state_dir, env = stack
    await _write(env)
    rows = [row for row in registry.live_rows(state_dir) if row["role"] in {"redis", "postgres", "kafka"}]
    assert len(rows) == 3, registry.live_rows(state_dir)
    for row in rows:
        os.kill(row["pid"], signal.SIGKILL)
    await _answering(state_dir)
    assert await _read(env) == ("kept", 1)


async def test_after_a_killed_supervisor_the_servers_end_and_the_next_start_resumes(
    stack: tuple[Path, dict[str, str]],
) -> None:
    state_dir, env = stack
    await _write(env)
    pid = supervisor_pid(state_dir)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    while supervisor_pid(state_dir):  # noqa: ASYNC110 - the kernel needs a moment, and tells nobody
        await asyncio.sleep(0.01)
    assert await asyncio.to_thread(start_servers, state_dir, tied=True) == env
    assert await _read(env) == ("kept", 1)


async def test_redis_and_postgres_run_with_the_durability_that_is_promised(
    stack: tuple[Path, dict[str, str]],
) -> None:
    findings = await asyncio.to_thread(examine, stack[0])
    wrong = [f for f in findings if not f.ok and f.what.startswith(("redis", "postgres"))]
    assert wrong == []
    assert {"redis appendfsync", "redis maxmemory-policy", "postgres fsync"} <= {f.what for f in findings}


def test_stop_and_reset_are_content_in_any_state(tmp_path: Path) -> None:
    said: list[str] = []
    stop(tmp_path / "never", said.append)
    reset(tmp_path / "never", said.append)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "stack.json").write_text("{")
    reset(tmp_path / "half", said.append)
    assert said.count("nothing was running") == 3
    assert not (tmp_path / "half").exists()


async def _write(env: dict[str, str]) -> None:
    client = Redis.from_url(env["REDIS_URL"])
    await client.set("word", "kept")
    await client.aclose()
    connection = await asyncpg.connect(env["POSTGRES_DSN"])
    await connection.execute("CREATE TABLE kept (n int); INSERT INTO kept VALUES (1)")
    await connection.close()


async def _read(env: dict[str, str]) -> tuple[str, int]:
    client = Redis.from_url(env["REDIS_URL"], decode_responses=True)
    word = await client.get("word")
    await client.aclose()
    connection = await asyncpg.connect(env["POSTGRES_DSN"])
    number = await connection.fetchval("SELECT n FROM kept")
    await connection.close()
    return str(word), int(number)


async def _answering(state_dir: Path) -> None:
    config = load_config(state_dir)
    assert config is not None
    async with asyncio.timeout(20):
        for server in server_specs(config, state_dir):
            assert server.healthy is not None
            while not await server.healthy():  # noqa: ASYNC110 - another process cannot set our event
                await asyncio.sleep(0.1)
