"""The order stage at work on records of books that are no longer in force."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from infra.inventory.inventory import Inventory
from infra.orders import read_rows
from infra.publisher import Publisher
from infra.redis_client import Redis
from infra.settings import Settings
from infra.settlement import SettlementDesk
from schemas.codec import encode
from schemas.events import OrderPlaced
from schemas.ids import OrderId, ProductId, new_order_id
from schemas.order_state import Status
from schemas.topics import ORDERS
from streams.acks import InOrderAcks
from streams.app import Resources
from streams.dead_letters import DeadLetters
from streams.order_stage import OrderStage
from tests.books import open_books, read_books
from tests.log import event_of, tailing
from tests.rows import create_product


@dataclass
class Message:
    value: bytes
    topic: str = ORDERS.name
    partition: int = 0
    offset: int = 0
    key: bytes = b""
    headers: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Event:
    """What the stage needs of faust's Event."""

    message: Message

    def ack(self) -> bool:
        return True


async def test_an_order_that_was_reserved_again_by_a_stage_that_died_is_on_the_log_under_its_new_version(
    settings: Settings,
    redis: Redis,
    inventory: Inventory,
    pool: asyncpg.Pool,
    publisher: Publisher,
    new_product: Callable[[], ProductId],
) -> None:
    """Killed between the reservation and its record, the stage reads the old record again: the new version must be told."""
    product, order_id = new_product(), new_order_id()
    await create_product(pool, product, 10, epoch=2)
    await open_books(redis, product, 10, epoch=2)
    lost = OrderPlaced(
        order_id=order_id,
        product_id=product,
        user_id=1,
        quantity=1,
        unit_price_cents=99_999,
        currency="USD",
        placed_at_ms=1_000,
        epoch=1,
        version=7,
        available=3,
    )
    acks: Any = InOrderAcks(pause=lambda _: None, resume=lambda _: None)
    desk = SettlementDesk(pool, inventory, publisher)
    stage = OrderStage(Resources(settings, pool, inventory, publisher, desk, DeadLetters(publisher)), acks)
    await stage._reserve(lost)  # and killed

    async def read(value: bytes) -> None:
        await stage._process([acks.take(0, Event(Message(value)))])

    async with tailing(settings, ORDERS) as tail:
        await read(encode(lost))
        found: list[Any] = await tail.until(lambda records: any(_is_of(order_id, record) for record in records))
    again = next(record for record in found if _is_of(order_id, record))
    told = event_of(again)
    assert isinstance(told, OrderPlaced)
    assert (told.epoch, told.version, told.available) == (2, 1, 9)
    await read(again.value)
    await read(encode(lost))  # known by now
    assert (await read_rows(pool, [order_id]))[order_id].status is Status.AWAITING_PAYMENT
    assert await pool.fetchval("SELECT version FROM orders WHERE id = $1", order_id) == 1
    (await read_books(redis, product)).check()


def _is_of(order_id: OrderId, record: Any) -> bool:
    return bool(record.key == order_id.encode())
