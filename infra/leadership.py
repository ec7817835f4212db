"""Leader election: the process that holds a Postgres advisory lock does the work, for as long as its connection lives.

A leader that has lost its connection stops as soon as it notices, which takes about 2 s. Two may lead for that moment, so
the work must be idempotent. Lock keys of this project start with 0x7412.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import asyncpg

from infra.backoff import jittered

from .lifecycle import Stop, cancelled
from .logs import get_logger
from .postgres.pool import CONNECT_TIMEOUT_S, UNAVAILABLE
from .settings import Settings

RELAY_LOCK = 0x7412_0002
PROBE_INTERVAL_S = 0.5
PROBE_TIMEOUT_S = 2.0

log = get_logger()


async def lead(settings: Settings, lock: int, stop: Stop, work: Callable[[], Awaitable[None]]) -> None:
    """Run `work` while this process leads, until `stop` is set. Raises the work's own error."""
    while not stop.stopping:
        try:
            await _campaign(settings, lock, stop, work)
        except UNAVAILABLE as error:
            log.warning("cannot lead", error=repr(error))
        await stop.sleep(jittered(0.8))


async def _campaign(settings: Settings, lock: int, stop: Stop, work: Callable[[], Awaitable[None]]) -> None:
    connection = await asyncpg.connect(
        settings.postgres_dsn,
        timeout=CONNECT_TIMEOUT_S,
        command_timeout=PROBE_TIMEOUT_S,
        server_settings={"application_name": f"thrones-{settings.thrones_role}-leader"},
    )
    try:
        while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", lock):
            if await stop.sleep(jittered(1.0)):
                return
        log.info("leading")
        await _work_while_connected(connection, stop, work)
        log.info("leads no longer")
    finally:
        with suppress(*UNAVAILABLE):
            await connection.close(timeout=PROBE_TIMEOUT_S)


async def _work_while_connected(connection: Any, stop: Stop, work: Callable[[], Awaitable[None]]) -> None:
    lost = asyncio.Event()
    connection.add_termination_listener(lambda _: lost.set())
    working = asyncio.ensure_future(work())
    others = [asyncio.create_task(each) for each in (lost.wait(), _wait_until_lost(connection), stop.wait())]
    try:
        await asyncio.wait([working, *others], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (working, *others):
            task.cancel()
        ended = (await asyncio.gather(working, *others, return_exceptions=True))[0]
    if isinstance(ended, BaseException) and not isinstance(ended, asyncio.CancelledError):
        raise WorkFailed from ended


async def _wait_until_lost(connection: Any) -> None:
    with suppress(*UNAVAILABLE):
        while not cancelled():
            await asyncio.sleep(PROBE_INTERVAL_S)
            await connection.fetchval("SELECT 1")


class WorkFailed(Exception):
    """The leader's work itself failed; see the cause."""
