"""A passing state of Postgres is nobody's fault: whatever it answers, records wait, and none is buried or failed for it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import asyncpg
import pytest

from infra.kafka.publisher import Publisher
from infra.postgres.pool import RECORDS_FAULT, UNAVAILABLE
from infra.redis.client import Redis
from infra.settings import Settings
from infra.waits import retry_until_ok, waiting_for
from sale.books.inventory import Inventory
from sale.orders import read_rows
from schemas.ids import ProductId
from schemas.order_state import Status
from schemas.topics import DEAD_LETTERS
from tests.books import hold, open_books, read_books, wish
from tests.log import tailing
from tests.rows import create_product

from .stages import order_stage

PASSING = ["25006", "53100", "53200", "53300", "57014", "57P01", "57P03", "58030", "28P01", "40001", "40P01", "55P03"]
OURS = ["42P01", "42883", "P0001", "XX000", "0A000", "54000", "99999"]  # a programming error waits as well, loudly
BURY = ["22021", "22003", "22001", "23514", "23503", "23505"]


def error_of(sqlstate: str) -> asyncpg.PostgresError:
    error: asyncpg.PostgresError = asyncpg.PostgresError.new({"C": sqlstate, "M": "text", "S": "ERROR"})
    return error


@pytest.mark.parametrize("sqlstate", PASSING + OURS)
def test_what_says_nothing_about_the_record_is_waited_for(sqlstate: str) -> None:
    assert isinstance(error_of(sqlstate), UNAVAILABLE)
    assert not isinstance(error_of(sqlstate), RECORDS_FAULT)


@pytest.mark.parametrize("sqlstate", BURY)
def test_only_the_classes_22_and_23_are_the_records_fault(sqlstate: str) -> None:
    assert isinstance(error_of(sqlstate), RECORDS_FAULT)
    assert not isinstance(error_of(sqlstate), UNAVAILABLE)


@pytest.mark.parametrize("value", ["a\0b", "a\ud800b"])
async def test_a_text_that_cannot_be_stored_is_the_values_fault(pool: asyncpg.Pool, value: str) -> None:
    with pytest.raises(RECORDS_FAULT):
        await retry_until_ok("postgres", UNAVAILABLE, pool.fetchval, "SELECT $1::text[]", [value])


@asynccontextmanager
async def read_only(pool: asyncpg.Pool) -> AsyncIterator[None]:
    """Every transaction of the server, new or kept connection, until the block ends."""
    await pool.execute("ALTER SYSTEM SET default_transaction_read_only = on")
    await pool.execute("SELECT pg_reload_conf()")
    try:
        await _until_read_only_is(pool, "on")
        yield
    finally:
        await pool.execute("ALTER SYSTEM RESET default_transaction_read_only")
        await pool.execute("SELECT pg_reload_conf()")
        await _until_read_only_is(pool, "off")


async def _until_read_only_is(pool: asyncpg.Pool, wanted: str) -> None:
    async with asyncio.timeout(10):
        while await pool.fetchval("SHOW default_transaction_read_only") != wanted:  # noqa: ASYNC110 - tells nobody
            await asyncio.sleep(0.01)


async def test_a_read_only_server_buries_and_fails_no_order(
    settings: Settings,
    redis: Redis,
    inventory: Inventory,
    pool: asyncpg.Pool,
    publisher: Publisher,
    new_product: Callable[[], ProductId],
) -> None:
    """The record stays unacknowledged; written again, the order awaits its payment as if nothing had been."""
    product = new_product()
    await create_product(pool, product, 10)
    await open_books(redis, product, 10)
    asked = wish(product)
    held = await hold(inventory, asked)
    async with order_stage(settings, inventory, pool, publisher) as stage, tailing(settings, DEAD_LETTERS) as tail:
        async with read_only(pool):
            waiting = stage.take(held.value)
            await until(lambda: "postgres" in waiting_for())
            assert not waiting.acked.is_set()
        async with asyncio.timeout(30):
            await waiting.acked.wait()
        assert not await tail.until(lambda _: True)
    assert (await read_rows(pool, [asked.order_id]))[asked.order_id].status is Status.AWAITING_PAYMENT
    (await read_books(redis, product)).check()


async def until(held: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not held():  # noqa: ASYNC110 - a gauge tells nobody
            await asyncio.sleep(0.01)
