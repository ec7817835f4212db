"""The payment stage at work: what one answer of the provider does to the other orders, which is nothing."""

import itertools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

import asyncpg
import pytest

from infra.kafka.publisher import Publisher
from infra.redis.client import Redis
from infra.settings import Settings
from sale.books.inventory import Inventory
from sale.orders import read_rows
from sale.payments.provider import Captured, Declined
from schemas.codec import encode
from schemas.events import PaymentRequested
from schemas.ids import OrderId, ProductId
from schemas.order_state import Status
from schemas.topics import DEAD_LETTERS, ORDER_STATUS
from tests.books import hold, open_books, read_books, wish
from tests.fake_provider import FakePaymentProvider
from tests.log import tailing
from tests.rows import Placed, create_product, place

from .stages import Stage, payment_stage


@dataclass
class Till:
    """A product of ten units, the stage that is paid for them, and a provider that says what it is told to."""

    product: ProductId
    pool: asyncpg.Pool
    redis: Redis
    inventory: Inventory
    provider: FakePaymentProvider
    stage: Stage

    async def orders(self, count: int) -> list[OrderId]:
        """Reserved and stored: they await payment."""
        ids = []
        for user in range(1, count + 1):
            asked = wish(self.product, user=user)
            held = await hold(self.inventory, asked)
            await place(self.pool, [Placed(asked.order_id, self.product, held.version, user_id=user)])
            ids.append(asked.order_id)
        return ids

    def request(self, order_id: OrderId) -> bytes:
        return encode(PaymentRequested(order_id=order_id, product_id=self.product, requested_at_ms=1_000))

    async def statuses(self, ids: list[OrderId]) -> list[Status]:
        rows = await read_rows(self.pool, ids)
        return [rows[id_].status for id_ in ids]


@pytest.fixture
async def till(
    settings: Settings,
    redis: Redis,
    inventory: Inventory,
    pool: asyncpg.Pool,
    publisher: Publisher,
    new_product: Callable[[], ProductId],
) -> AsyncIterator[Till]:
    product, provider = new_product(), FakePaymentProvider()
    await create_product(pool, product, 10)
    await open_books(redis, product, 10)
    async with payment_stage(settings, inventory, pool, publisher, provider) as stage:
        yield Till(product, pool, redis, inventory, provider, stage)


@pytest.mark.parametrize("bad", [Captured("ch_\0"), Captured("ch_\ud800"), Declined("no\0funds")], ids=repr)
async def test_an_answer_that_postgres_cannot_store_is_set_aside_and_all_others_end(
    till: Till, settings: Settings, bad: Captured | Declined
) -> None:
    """Settled in one batch with six others: it needs reconciliation, its request is a dead letter, the stage goes on."""
    ids = await till.orders(7)
    till.provider.will(ids[2], [bad])
    till.provider.will(ids[5], [Declined("no funds")])
    async with tailing(settings, ORDER_STATUS, DEAD_LETTERS) as tail:
        await till.stage.read(*map(till.request, ids))
        [told] = await tail.statuses(1, ids[2])
        await tail.until(lambda records: any(record.topic == DEAD_LETTERS.name for record in records))
        [letter] = [record for record in tail.records if record.topic == DEAD_LETTERS.name]
    expected = [Status.CONFIRMED] * 7
    expected[2], expected[5] = Status.NEEDS_RECONCILIATION, Status.PAYMENT_FAILED
    assert await till.statuses(ids) == expected
    assert told.status is Status.NEEDS_RECONCILIATION
    assert letter.value == till.request(ids[2])
    assert dict(letter.headers)["reason"].startswith(b"postgres cannot store the provider's answer: ")
    books = await read_books(till.redis, till.product)
    books.check()
    assert (books.held, books.sold) == (1, 5)
    assert not till.stage.acks.open


async def test_an_order_of_which_nothing_can_be_written_is_left_as_it_is_and_the_stage_goes_on(till: Till) -> None:
    """Not even that its payment is unknown: a rule of the database forbids it."""
    stuck, fine = await till.orders(2)
    await till.pool.execute(
        f"""CREATE FUNCTION forbid() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            RAISE 'not this one' USING ERRCODE = 'check_violation'; END $$;
        CREATE TRIGGER forbid BEFORE UPDATE ON orders FOR EACH ROW WHEN (OLD.id = '{stuck}') EXECUTE FUNCTION forbid()"""
    )
    await till.stage.read(till.request(stuck), till.request(fine))
    assert await till.statuses([stuck, fine]) == [Status.AWAITING_PAYMENT, Status.CONFIRMED]


async def test_a_product_whose_books_are_closed_keeps_no_other_from_being_paid_ended_and_acknowledged(
    till: Till, new_product: Callable[[], ProductId]
) -> None:
    """Its requests are first in their partition: those behind them are acknowledged, and so are its own."""
    stuck = await till.orders(4)
    await till.inventory.close(till.product)
    other = replace(till, product=new_product())
    await create_product(till.pool, other.product, 10)
    await open_books(till.redis, other.product, 10)
    fine = await other.orders(4)
    till.stage.partitions = itertools.repeat(0)
    await till.stage.read(*[request for pair in zip(stuck, fine, strict=True) for request in map(till.request, pair)])
    assert await till.statuses(stuck + fine) == [Status.CONFIRMED] * 8
    assert not till.stage.acks.open
    assert (await read_books(till.redis, other.product)).sold == 4
    assert (await read_books(till.redis, till.product)).held == 4  # left to the next books
