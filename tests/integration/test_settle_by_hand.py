"""An operator settles by hand: never beside an attempt that is under way, and only what nobody else can settle."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import asyncpg
import pytest
import structlog

from consumers.reconciler import Reconciler
from infra.kafka.publisher import Publisher
from infra.redis.client import Redis
from infra.settings import Settings
from sale.books.inventory import Inventory
from sale.operations import operations
from sale.operations.operations import OperationRefused, Stores
from sale.orders import OrderRow, read_rows
from sale.payments.breaker import CircuitBreaker
from sale.payments.provider import ASKED_FOR, Captured
from sale.settlement import IN_HAND_AFTER_S, SettlementDesk, Verdict
from sale.tables.queries import SQL
from schemas.ids import OrderId, ProductId, new_order_id
from schemas.order_state import Status
from tests.books import hold, open_books, read_books, wish
from tests.fake_provider import FakePaymentProvider
from tests.rows import Placed, create_product, place, settle

CONFIRMED: Final = Status.CONFIRMED
DECLINED: Final = Status.PAYMENT_FAILED


@dataclass
class Counter:
    """A product, an operator's stores, and the reconciler that works beside them."""

    product: ProductId
    stores: Stores
    provider: FakePaymentProvider
    reconciler: Reconciler

    async def order(self, status: Status = Status.NEEDS_RECONCILIATION, age: str = "1 minute") -> OrderId:
        asked = wish(self.product)
        held = await hold(Inventory(self.stores.redis), asked)
        await place(self.stores.pool, [Placed(asked.order_id, self.product, held.version)])
        if status is not Status.AWAITING_PAYMENT:
            await settle(self.stores.pool, [(asked.order_id, status)])
        await self.stores.pool.execute(
            "UPDATE orders SET created_at = now() - $2::text::interval WHERE id = $1", asked.order_id, age
        )
        return asked.order_id

    async def to_ask_about(self) -> list[OrderRow]:
        return [OrderRow.of(row) for row in await self.stores.pool.fetch(SQL.unsettled_payments, ASKED_FOR, 100)]

    async def status(self, order: OrderId) -> Status:
        return (await read_rows(self.stores.pool, [order]))[order].status


@pytest.fixture
async def counter(
    settings: Settings,
    redis: Redis,
    inventory: Inventory,
    pool: asyncpg.Pool,
    publisher: Publisher,
    new_product: Callable[[], ProductId],
    monkeypatch: pytest.MonkeyPatch,
) -> Counter:
    monkeypatch.setattr(operations, "LAST_ATTEMPT_S", 0.5)
    product, provider = new_product(), FakePaymentProvider()
    await create_product(pool, product, 10)
    await open_books(redis, product, 10)
    stores = Stores(settings, redis, pool, publisher)
    return Counter(product, stores, provider, Reconciler(SettlementDesk(pool, inventory, publisher), provider))


async def test_an_order_that_the_provider_has_forgotten_is_settled(counter: Counter) -> None:
    order = await counter.order(age="25 hours")
    assert await operations.settle(counter.stores, order, CONFIRMED, "ticket 4711") is CONFIRMED
    assert await operations.settle(counter.stores, order, CONFIRMED, "again") is CONFIRMED
    books = await read_books(counter.stores.redis, counter.product)
    books.check()
    assert books.sold == 1


@pytest.mark.parametrize(
    ("status", "early", "said"),
    [
        (Status.AWAITING_PAYMENT, True, "is awaiting_payment: its payment is under way"),
        (Status.NEEDS_RECONCILIATION, False, "is asked about until .* UTC.*--early"),
        (Status.PAYMENT_FAILED, True, "is payment_failed already"),
    ],
)
async def test_what_is_not_an_operators_to_settle_is_refused_in_words(
    counter: Counter, status: Status, early: bool, said: str
) -> None:
    order = await counter.order(status)
    with pytest.raises(OperationRefused, match=said):
        await operations.settle(counter.stores, order, CONFIRMED, "x", early=early)
    assert await counter.status(order) is status


async def test_an_order_that_nobody_knows_is_refused(counter: Counter) -> None:
    with pytest.raises(OperationRefused, match="there is no order"):
        await operations.settle(counter.stores, new_order_id(), CONFIRMED, "x")


async def test_an_order_in_hand_is_not_asked_about_and_one_left_lying_is_again(counter: Counter) -> None:
    order = await counter.order()
    settling = asyncio.create_task(operations.settle(counter.stores, order, DECLINED, "x", early=True))
    async with asyncio.timeout(10):
        while await counter.to_ask_about():  # noqa: ASYNC110 - Postgres tells nobody
            await asyncio.sleep(0.01)
    settling.cancel()  # the operator's machine dies
    await asyncio.gather(settling, return_exceptions=True)
    assert not await counter.to_ask_about()
    await counter.stores.pool.execute("UPDATE orders SET by_hand_since = now() - interval '11 minutes'")
    assert [row.id for row in await counter.to_ask_about()] == [order]


async def test_an_attempt_that_was_under_way_ends_first_and_its_answer_counts(counter: Counter) -> None:
    """Asked just before the operator came, the provider captures: the order is not settled as declined beside it."""
    order = await counter.order()
    counter.provider.latency_s = 0.3
    asking = asyncio.create_task(counter.reconciler.reconcile(await counter.to_ask_about()))
    async with asyncio.timeout(10):
        while not counter.provider.attempts:  # noqa: ASYNC110 - a list
            await asyncio.sleep(0.001)
    with pytest.raises(OperationRefused, match="is confirmed already"):
        await operations.settle(counter.stores, order, DECLINED, "x", early=True)
    assert await asking == 1
    (await read_books(counter.stores.redis, counter.product)).check()


async def test_no_attempt_begins_on_a_row_that_waited_behind_the_breaker(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator may have it in hand by now; it is read anew first."""
    order = await counter.order()
    rows = await counter.to_ask_about()
    open_again, acquire = asyncio.Event(), CircuitBreaker.acquire

    async def when_open(breaker: CircuitBreaker) -> int:
        await open_again.wait()
        return await acquire(breaker)

    monkeypatch.setattr(CircuitBreaker, "acquire", when_open)
    asking = asyncio.create_task(counter.reconciler.reconcile(rows))
    await asyncio.sleep(IN_HAND_AFTER_S + 0.1)
    assert await operations.settle(counter.stores, order, DECLINED, "x", early=True) is DECLINED
    open_again.set()
    assert await asking == 0
    assert counter.provider.attempts == []


async def test_an_answer_that_comes_after_another_end_changes_nothing_and_is_told(counter: Counter) -> None:
    order = await counter.order(age="25 hours")
    await operations.settle(counter.stores, order, DECLINED, "ticket 4711")
    desk = SettlementDesk(counter.stores.pool, Inventory(counter.stores.redis), counter.stores.publisher)
    with structlog.testing.capture_logs() as lines:
        await desk.settle([Verdict(order, CONFIRMED, None, Captured("ch_1").charge_id)])
    assert await counter.status(order) is DECLINED
    [told] = [line for line in lines if line["event"] == "answered too late"]
    assert (told["order_id"], told["answer"]) == (order, CONFIRMED)
