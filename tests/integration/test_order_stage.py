"""The order stage at work on records of books that are no longer in force."""

import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import pytest

from infra.kafka.publisher import Publisher
from infra.redis.client import Redis
from infra.settings import Settings
from sale.books import keys
from sale.books.inventory import Inventory
from sale.orders import read_rows
from sale.tables.queries import SQL
from schemas.codec import encode
from schemas.events import OrderPlaced
from schemas.ids import OrderId, ProductId, new_order_id
from schemas.order_state import Status
from schemas.topics import DEAD_LETTERS, ORDER_STATUS, ORDERS
from streams.replaced_books import reservation_of
from tests.books import hold, open_books, read_books, wish
from tests.log import event_of, tailing
from tests.rows import create_product

from .stages import Stage, order_stage


@pytest.fixture
async def stage(
    settings: Settings, inventory: Inventory, pool: asyncpg.Pool, publisher: Publisher
) -> AsyncIterator[Stage]:
    async with order_stage(settings, inventory, pool, publisher) as working:
        yield working


def placed(product: ProductId, **fields: Any) -> OrderPlaced:
    known: dict[str, Any] = {
        "user_id": 1,
        "quantity": 1,
        "unit_price_cents": 99_999,
        "currency": "USD",
        "placed_at_ms": 1_000,
    }
    return OrderPlaced(order_id=new_order_id(), product_id=product, **(known | fields))


async def test_an_order_that_was_reserved_again_by_a_stage_that_died_is_on_the_log_under_its_new_version(
    stage: Stage, settings: Settings, redis: Redis, pool: asyncpg.Pool, new_product: Callable[[], ProductId]
) -> None:
    """Killed between the reservation and its record, the stage reads the old record again: the new version must be told."""
    product = new_product()
    await create_product(pool, product, 10, epoch=2)
    await open_books(redis, product, 10, epoch=2)
    lost = placed(product, epoch=1, version=7, available=3)
    order_id = OrderId(lost.order_id)
    await stage.stage._replaced_books._inventory.reserve(reservation_of(lost))  # and killed
    async with tailing(settings, ORDERS) as tail:
        await stage.read(encode(lost))
        found: list[Any] = await tail.until(lambda records: any(_is_of(order_id, record) for record in records))
    again = next(record for record in found if _is_of(order_id, record))
    told = event_of(again)
    assert isinstance(told, OrderPlaced)
    assert (told.epoch, told.version, told.available) == (2, 1, 9)
    await stage.read(again.value)
    await stage.read(encode(lost))  # known by now
    assert (await read_rows(pool, [order_id]))[order_id].status is Status.AWAITING_PAYMENT
    assert await pool.fetchval("SELECT version FROM orders WHERE id = $1", order_id) == 1
    (await read_books(redis, product)).check()


async def test_what_postgres_refuses_for_good_is_dead_lettered_and_ends_as_a_failed_row(
    stage: Stage,
    settings: Settings,
    redis: Redis,
    inventory: Inventory,
    pool: asyncpg.Pool,
    new_product: Callable[[], ProductId],
) -> None:
    """Its reservation would be held for ever otherwise: the units come back, and its owner is told."""
    product = new_product()
    await create_product(pool, product, 10)
    await open_books(redis, product, 10)
    asked = wish(product, quantity=3)
    held = await hold(inventory, asked)
    await pool.execute(
        """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            RAISE 'no such order' USING ERRCODE = 'check_violation'; END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON orders FOR EACH ROW WHEN (NEW.status <> 'failed') EXECUTE FUNCTION refuse()"""
    )
    async with tailing(settings, ORDER_STATUS, DEAD_LETTERS) as tail:
        await stage.read(held.value)
        [told] = await tail.statuses(1, asked.order_id)
        await tail.until(lambda records: any(record.topic == DEAD_LETTERS.name for record in records))
    assert (told.status, told.returned, told.reason) == (Status.FAILED, 3, "postgres: no such order")
    assert (await read_rows(pool, [asked.order_id]))[asked.order_id].status is Status.FAILED
    books = await read_books(redis, product)
    books.check()
    assert books.available == 10


async def test_a_record_whose_books_are_closed_is_parked_and_holds_up_nothing_behind_it(
    stage: Stage, redis: Redis, inventory: Inventory, pool: asyncpg.Pool, new_product: Callable[[], ProductId]
) -> None:
    """One partition: what is read after it is placed and acknowledged, and so is the record itself."""
    stuck, fine = new_product(), new_product()
    for product in (stuck, fine):
        await create_product(pool, product, 10, epoch=2)
        await open_books(redis, product, 10, epoch=2)
    await inventory.close(stuck)
    stage.partitions = itertools.repeat(0)
    lost = encode(placed(stuck, epoch=1, version=1, available=9))
    asked = [wish(fine, user=user) for user in range(1, 9)]
    await stage.read(lost, *[(await hold(inventory, order)).value for order in asked])
    rows = await read_rows(pool, [order.order_id for order in asked])
    assert [row.status for row in rows.values()] == [Status.AWAITING_PAYMENT] * 8
    assert [row["record"] for row in await pool.fetch(SQL.parked_orders, stuck)] == [lost]
    assert not stage.acks.open


async def test_a_record_that_is_read_again_once_its_books_are_in_force_is_reserved_again(
    stage: Stage,
    settings: Settings,
    redis: Redis,
    inventory: Inventory,
    pool: asyncpg.Pool,
    new_product: Callable[[], ProductId],
) -> None:
    """Also where as many are held as may be: what was accepted before is no new wish."""
    product = new_product()
    await create_product(pool, product, 10, epoch=2)
    await open_books(redis, product, 10, epoch=2, max_held=0)
    await inventory.close(product)
    lost = placed(product, epoch=1, version=1, available=9)
    await stage.read(encode(lost))
    await redis.hset(keys.stock(product), "state", "open")
    async with tailing(settings, ORDERS) as tail:
        await stage.read(encode(lost))
        order_id = OrderId(lost.order_id)
        found: list[Any] = await tail.until(lambda records: any(_is_of(order_id, record) for record in records))
    await stage.read(next(record.value for record in found if _is_of(order_id, record)))
    assert (await read_rows(pool, [order_id]))[order_id].status is Status.AWAITING_PAYMENT
    (await read_books(redis, product)).check()


def _is_of(order_id: OrderId, record: Any) -> bool:
    return bool(record.key == order_id.encode())
