"""The reconciler: an unknown payment is asked about until the provider is definite, and no order waits behind another."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import asyncpg
import pytest

from consumers import reconciler
from consumers.reconciler import Reconciler
from infra.kafka.publisher import Publisher
from infra.lifecycle import Stop
from infra.redis.client import Redis
from infra.settings import Settings
from sale.books.inventory import Inventory
from sale.orders import OrderRow, read_rows
from sale.payments.provider import Captured, ChargeOutcome, Declined, Unknown
from sale.settlement import SettlementDesk
from schemas.ids import OrderId, ProductId
from schemas.order_state import Status
from tests.books import hold, open_books, read_books, wish
from tests.rows import Placed, create_product, place, settle


@dataclass
class FakePaymentProvider:
    """Unknown until told otherwise."""

    answers: dict[str, ChargeOutcome] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)

    async def charge(self, order_id: str, amount_cents: int, currency: str) -> ChargeOutcome:
        self.asked[order_id] += 1
        return self.answers.get(order_id, Unknown("no answer"))


@dataclass
class Desk:
    """Orders whose payment is unknown, and who works on them."""

    product: ProductId
    pool: asyncpg.Pool
    inventory: Inventory
    provider: FakePaymentProvider
    reconciler: Reconciler

    async def unknown_payments(self, count: int) -> list[OrderId]:
        ids = []
        for user in range(1, count + 1):
            asked = wish(self.product, user=user)
            held = await hold(self.inventory, asked)
            await place(self.pool, [Placed(asked.order_id, self.product, held.version, user_id=user)])
            await settle(self.pool, [(asked.order_id, Status.NEEDS_RECONCILIATION)])
            ids.append(asked.order_id)
        return ids

    async def rows(self, ids: Sequence[OrderId]) -> list[OrderRow]:
        found = await read_rows(self.pool, ids)
        return [found[id_] for id_ in ids]


@pytest.fixture
async def desk(
    redis: Redis,
    inventory: Inventory,
    pool: asyncpg.Pool,
    publisher: Publisher,
    new_product: Callable[[], ProductId],
) -> Desk:
    product, provider = new_product(), FakePaymentProvider()
    await create_product(pool, product, 10)
    await open_books(redis, product, 10)
    working = Reconciler(SettlementDesk(pool, inventory, publisher), provider)
    return Desk(product, pool, inventory, provider, working)


async def test_a_definite_answer_ends_an_order_and_an_unknown_one_leaves_it(desk: Desk) -> None:
    bought, declined, unknown = await desk.unknown_payments(3)
    desk.provider.answers = {bought: Captured("ch_1"), declined: Declined("no funds")}
    assert await desk.reconciler.reconcile(await desk.rows([bought, declined, unknown])) == 2
    statuses = [row.status for row in await desk.rows([bought, declined, unknown])]
    assert statuses == [Status.CONFIRMED, Status.PAYMENT_FAILED, Status.NEEDS_RECONCILIATION]
    books = await read_books(desk.inventory.redis, desk.product)
    assert (books.available, books.held, books.sold) == (8, 1, 1)


async def test_an_answer_that_cannot_be_stored_keeps_no_other_waiting_and_is_asked_for_again_later(desk: Desk) -> None:
    """Its order stays what it is; the round goes on, and so does the next."""
    ids = await desk.unknown_payments(3)
    rows = await desk.rows(ids)
    desk.provider.answers = {ids[0]: Captured("ch_1"), ids[1]: Captured("ch_\0"), ids[2]: Declined("no\0funds")}
    assert await desk.reconciler.reconcile(rows) == 1
    assert await desk.reconciler.reconcile(rows[1:]) == 0
    statuses = [row.status for row in await desk.rows(ids)]
    assert statuses == [Status.CONFIRMED, Status.NEEDS_RECONCILIATION, Status.NEEDS_RECONCILIATION]
    assert [desk.provider.asked[id_] for id_ in ids] == [1, 1, 1]
    assert (await read_books(desk.inventory.redis, desk.product)).held == 2


async def test_an_unknown_order_is_asked_about_again_later_not_at_once(desk: Desk) -> None:
    rows = await desk.rows(await desk.unknown_payments(1))
    for _ in range(3):
        await desk.reconciler.reconcile(rows)
    assert desk.provider.asked[rows[0].id] == 1
    async with asyncio.timeout(10):
        while desk.provider.asked[rows[0].id] == 1:
            await asyncio.sleep(0.1)
            await desk.reconciler.reconcile(rows)


async def test_orders_that_stay_unknown_do_not_keep_newer_ones_waiting(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round asks about a bounded number; the next one asks about others, not about the oldest for ever."""
    monkeypatch.setattr(reconciler, "MAX_BATCH", 2)
    ids = await desk.unknown_payments(5)
    rows = await desk.rows(ids)
    for _ in range(3):
        await desk.reconciler.reconcile(rows)
    assert set(desk.provider.asked) == set(ids)


async def test_past_the_keys_lifetime_nobody_is_asked_and_nobody_waits_for_it(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Orders left to the operator fill no round: with room for one row, the one that can be settled is."""
    monkeypatch.setattr(reconciler, "MAX_ROWS", 1)
    monkeypatch.setattr(reconciler, "PAUSE_S", 0.05)
    expired, young = await desk.unknown_payments(2)
    await desk.pool.execute("UPDATE orders SET created_at = now() - interval '25 hours' WHERE id = $1", expired)
    desk.provider.answers = {expired: Captured("ch_1"), young: Captured("ch_2")}
    working = asyncio.create_task(reconciler._reconcile_in_rounds(desk.reconciler, desk.pool))
    async with asyncio.timeout(10):
        while (await desk.rows([young]))[0].status is not Status.CONFIRMED:  # noqa: ASYNC110 - Postgres tells nobody
            await asyncio.sleep(0.05)
    working.cancel()
    assert (await desk.rows([expired]))[0].status is Status.NEEDS_RECONCILIATION
    assert not desk.provider.asked[expired]


async def test_a_product_whose_books_are_closed_holds_up_no_round(
    desk: Desk, new_product: Callable[[], ProductId]
) -> None:
    """Its order becomes definite and is left to the next books; another product's ends in the same round, or the next."""
    [stuck] = await desk.unknown_payments(1)
    await desk.inventory.close(desk.product)
    other = replace(desk, product=new_product())
    await create_product(desk.pool, other.product, 10)
    await open_books(desk.inventory.redis, other.product, 10)
    fine, later = await other.unknown_payments(2)
    desk.provider.answers = {id_: Captured("ch") for id_ in (stuck, fine, later)}
    async with asyncio.timeout(10):
        await desk.reconciler.reconcile(await desk.rows([stuck, fine]))
        await desk.reconciler.reconcile(await desk.rows([later]))
    assert [row.status for row in await desk.rows([stuck, fine, later])] == [Status.CONFIRMED] * 3
    assert (await read_books(desk.inventory.redis, other.product)).sold == 2


async def test_it_stops_at_once_while_the_provider_hangs(
    desk: Desk, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler, "PAUSE_S", 0.05)
    await desk.unknown_payments(1)
    asked, gone = asyncio.Event(), asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()  # until the client closes
        writer.close()
        gone.set()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    stop = Stop()
    task = asyncio.create_task(
        reconciler.run(settings.model_copy(update={"payment_gateway_url": f"http://{host}:{port}"}), stop)
    )
    await asyncio.wait_for(asked.wait(), 10)
    began = time.monotonic()
    stop.set()
    await asyncio.wait_for(task, 10)
    assert time.monotonic() - began < 2.0
    await asyncio.wait_for(gone.wait(), 10)
    server.close()
