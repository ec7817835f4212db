"""`thrones gateway` as real processes: several workers on one socket, killed, stopped, and refused a weak secret."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from infra.settings import KNOWN_BAD_SECRETS, SigningSettings
from infra.supervision.registry import ProcessRow, live_rows
from tests.conftest import child_env

from .gateway_fixtures import settings

__all__ = ["settings"]

WORKERS = 3
RESTART_S = 20.0  # 1-2 s on a quiet machine; the tests' own is not


def environment(settings: SigningSettings, state_dir: Path, port: int) -> dict[str, str]:
    """What the processes of a production gateway are told."""
    return child_env(
        settings,
        THRONES_PROFILE="production",
        THRONES_STATE_DIR=str(state_dir),
        JWT_SECRET=settings.jwt_secret.get_secret_value(),
        API_WORKERS=str(WORKERS),
        PORT=str(port),
    )


@asynccontextmanager
async def cluster(settings: SigningSettings, state_dir: Path, command: str = "gateway") -> AsyncIterator[str]:
    """`thrones COMMAND` on a free port, once its members are registered; it must end with 0 when told to stop."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "thrones",
        command,
        env=environment(settings, state_dir, port),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        await _until(lambda: len(workers(state_dir, command)) == WORKERS, 30)
        yield f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.terminate()
        assert await asyncio.wait_for(process.wait(), 30) == 0


def workers(state_dir: Path, role: str = "gateway") -> list[ProcessRow]:
    return [row for row in live_rows(state_dir) if row["role"] == role]


async def _until(condition: Callable[[], bool], within_s: float) -> None:
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until
        await asyncio.sleep(0.05)


async def test_killed_and_stopped_workers_come_back_and_nobody_is_refused(
    settings: SigningSettings, tmp_path: Path
) -> None:
    """New connections are made all the time; a worker that is stopped resets none of them, one that is killed only its own,
    and each is replaced. /metrics sums over all of them."""
    async with cluster(settings, tmp_path) as url:
        stopping, failures, answered = False, 0, 0

        async def knock() -> None:
            nonlocal failures, answered
            while not stopping:
                try:
                    connector = aiohttp.TCPConnector(force_close=True)
                    async with (
                        aiohttp.ClientSession(connector=connector) as session,
                        session.get(f"{url}/health/live") as response,
                    ):
                        answered += response.status == 200
                except aiohttp.ClientError:
                    failures += 1

        knocking = [asyncio.create_task(knock()) for _ in range(4)]
        for number, lost in ((signal.SIGTERM, 0), (signal.SIGKILL, 4)):
            before = failures
            victim = workers(tmp_path)[0]["pid"]
            os.kill(victim, number)
            await _until(lambda: all(row["pid"] != victim for row in workers(tmp_path)), 25)  # noqa: B023 # awaited at once
            await _until(lambda: len(workers(tmp_path)) == WORKERS, RESTART_S)
            assert failures - before <= lost
        stopping = True
        await asyncio.gather(*knocking)
        assert answered > 50
        async with aiohttp.ClientSession() as session:
            await session.get(f"{url}/nothing")
            texts = []
            for _ in range(5):
                async with session.get(f"{url}/metrics", headers={"Connection": "close"}) as response:
                    texts.append(await response.text())
        assert all('thrones_gateway_refused_total{code="not_found"} 1.0' in text for text in texts)


@pytest.mark.parametrize("secret", ["", "x" * 31, *KNOWN_BAD_SECRETS])
def test_a_weak_secret_is_refused_at_the_start(settings: SigningSettings, tmp_path: Path, secret: str) -> None:
    """Exit code not 0, the setting is named, the secret is not."""
    env = environment(settings, tmp_path, 0) | {"JWT_SECRET": secret}
    done = subprocess.run([sys.executable, "-m", "thrones", "gateway"], env=env, capture_output=True, timeout=30)
    assert done.returncode != 0
    assert b"JWT_SECRET" in done.stderr
    assert not secret or secret.encode() not in done.stdout + done.stderr


async def test_streams_split_off_serve_no_api_and_end_their_streams_when_stopped(
    settings: SigningSettings, tmp_path: Path
) -> None:
    """`thrones sse` knows the streams and its health, nothing that buys or logs in; its exit code is 0."""
    async with cluster(settings, tmp_path, "sse") as url, aiohttp.ClientSession(url) as session:
        await _until_answering(session)
        for path, status in (("/health/live", 200), ("/api/products", 404), ("/sse/stock/2000000000", 404)):
            async with session.get(path) as response:
                assert (path, response.status) == (path, status)
        async with session.post("/api/order/buy-flash", json={"productId": 1}) as response:
            assert response.status == 404


async def _until_answering(session: aiohttp.ClientSession) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                async with session.get("/health/live"):
                    return
            except aiohttp.ClientError:
                await asyncio.sleep(0.05)
