"""The relay: pushes stranded orders, publishes samples and actions, rebuilds books, sets gauges. One leads, others stand by.

It keeps no state of its own: the next leader finds everything in Redis, Postgres and Kafka.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import asyncpg
from aiokafka.errors import KafkaError

from consumers.relay.gauges import REFRESH_INTERVAL_S, Gauges
from consumers.relay.keeper import LOG_INTERVAL_S, MARK_INTERVAL_S, Keeper
from consumers.relay.parked import POLL_INTERVAL_S as PARKED_INTERVAL_S
from consumers.relay.parked import Parked
from consumers.relay.pushes import Pusher
from consumers.relay.samples import SAMPLE_INTERVAL_S, Sampler
from consumers.relay.trail import POLL_INTERVAL_S as TRAIL_INTERVAL_S
from consumers.relay.trail import Trail
from infra.kafka.publisher import Publisher
from infra.kafka.watermarks import Watermarks
from infra.leadership import RELAY_LOCK, lead
from infra.lifecycle import Stop, cancelled
from infra.logs import get_logger
from infra.metrics.definitions import RELAY_LEADING
from infra.postgres.pool import UNAVAILABLE, connect_postgres
from infra.redis.client import Redis, RedisError, connect_redis
from infra.settings import Settings
from sale.books.books import Books
from sale.books.inventory import Inventory
from sale.openings import EventLog
from sale.settlement import SettlementDesk

BOOKS_INTERVAL_S = 0.2
PUSH_INTERVAL_S = 0.1
PAUSE_S = 0.5  # after a store did not answer
ROUND_TIMEOUT_S = (
    30.0  # every call in a turn has a deadline of its own; should one hang all the same, the turn is given up
)
SERVER_ERRORS = (*UNAVAILABLE, RedisError, KafkaError)
REDIS_TIMEOUT_S = 5.0

_leading = RELAY_LEADING.make()
log = get_logger()


async def run(settings: Settings, stop: Stop) -> None:
    """Lead when no other relay does, until asked to stop."""

    async def work() -> None:
        _leading.set(1)
        try:
            await _lead(settings)
        finally:
            _leading.set(0)

    await lead(settings, RELAY_LOCK, stop, work)


async def _lead(settings: Settings) -> None:
    async with AsyncExitStack() as stack:
        redis = connect_redis(settings, timeout_s=REDIS_TIMEOUT_S)
        stack.push_async_callback(redis.aclose)
        pool = await connect_postgres(settings)
        stack.push_async_callback(_close_pool, pool)
        publisher = await Publisher.start(settings)
        stack.push_async_callback(publisher.stop)
        watermarks, the_log = Watermarks(settings), EventLog(settings)
        stack.push_async_callback(watermarks.close)
        stack.push_async_callback(the_log.close)
        keeper = Keeper(settings, redis, pool, publisher, the_log)
        stack.push_async_callback(keeper.stop)
        gauges = Gauges(
            redis, Watermarks(settings)
        )  # a separate client: the pushes close and reopen theirs when needed
        stack.push_async_callback(gauges.close)
        await _loops(redis, pool, publisher, watermarks, keeper, gauges)


async def _loops(
    redis: Redis,
    pool: asyncpg.Pool,
    publisher: Publisher,
    watermarks: Watermarks,
    keeper: Keeper,
    gauges: Gauges,
) -> None:
    """Run all loops side by side: a loop that waits does not delay the others."""
    inventory = Inventory(redis)
    pusher = Pusher(inventory, pool, publisher, SettlementDesk(pool, inventory, publisher), watermarks)
    sampler = Sampler(Books(redis), publisher)
    parked = Parked(pool, publisher)

    async def push() -> None:
        await pusher.run_once(keeper.in_force)

    async def sample() -> None:
        await sampler.run_once(keeper.in_force)

    async def send_parked() -> None:
        await parked.run_once(keeper.in_force)

    async def refresh_gauges() -> None:
        await gauges.run_once(keeper.in_force)

    async with asyncio.TaskGroup() as group:
        group.create_task(_repeat("books", BOOKS_INTERVAL_S, keeper.run_once))
        group.create_task(_repeat("log", LOG_INTERVAL_S, keeper.check_log))
        group.create_task(_repeat("marks", MARK_INTERVAL_S, keeper.mark_verified))
        group.create_task(_repeat("pushes", PUSH_INTERVAL_S, push))
        group.create_task(_repeat("samples", SAMPLE_INTERVAL_S, sample))
        group.create_task(_repeat("parked", PARKED_INTERVAL_S, send_parked))
        group.create_task(_repeat("gauges", REFRESH_INTERVAL_S, refresh_gauges))
        group.create_task(_repeat("trail", TRAIL_INTERVAL_S, Trail(pool, publisher).run_once))


async def _repeat(what: str, every_s: float, run_once: Callable[[], Awaitable[object]]) -> None:
    """Repeat until cancelled. While a store is down it waits; any other error ends the process."""
    away = False
    while not cancelled():
        try:
            async with asyncio.timeout(ROUND_TIMEOUT_S):
                await run_once()
        except SERVER_ERRORS as error:
            if not away:
                log.warning("waiting", what=what, error=repr(error))
            away = True
            await asyncio.sleep(PAUSE_S)
        else:
            if away:
                log.info("goes on", what=what)
            away = False
            await asyncio.sleep(every_s)


async def _close_pool(pool: asyncpg.Pool) -> None:
    try:
        await asyncio.wait_for(pool.close(), 2.0)
    except TimeoutError:
        pool.terminate()
