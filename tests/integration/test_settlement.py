"""How an order ends: row, units and the news of them, in that order, each once, whoever dies in between and whatever is away."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import asyncpg
import pytest

from infra.kafka.publisher import Publisher
from infra.redis.client import Redis
from infra.settings import Settings
from sale.books import keys
from sale.books.inventory import Held, Inventory, Reservation
from sale.orders import read_rows
from sale.settlement import SettlementDesk, Verdict
from schemas.events import OrderStatusChanged
from schemas.ids import ProductId
from schemas.order_state import Entry, Status
from schemas.topics import ORDER_STATUS
from tests.books import hold, open_books, read_books, wish
from tests.log import tailing
from tests.rows import Placed, create_product, place, taken

Outcome = Literal[Status.CONFIRMED, Status.PAYMENT_FAILED]


@dataclass
class Sale:
    """A product of ten units in Redis and Postgres, and the desk at which its orders end."""

    product: ProductId
    settings: Settings
    redis: Redis
    inventory: Inventory
    pool: asyncpg.Pool
    desk: SettlementDesk

    async def order(self, quantity: int = 1, user: int = 1) -> tuple[Reservation, Held]:
        """Reserved and stored: it awaits payment."""
        asked = wish(self.product, quantity=quantity, user=user)
        held = await hold(self.inventory, asked)
        await place(self.pool, [Placed(asked.order_id, self.product, held.version, quantity, user_id=user)])
        return asked, held

    async def check(self) -> None:
        (await read_books(self.redis, self.product)).check()
        await taken(self.pool, self.product)


@pytest.fixture
async def sale(
    settings: Settings,
    redis: Redis,
    inventory: Inventory,
    pool: asyncpg.Pool,
    publisher: Publisher,
    new_product: Callable[[], ProductId],
) -> Sale:
    product = new_product()
    await create_product(pool, product, 10)
    await open_books(redis, product, 10)
    return Sale(product, settings, redis, inventory, pool, SettlementDesk(pool, inventory, publisher))


def settlement_of(event: OrderStatusChanged) -> tuple[object, ...]:
    return event.epoch, event.version, event.available, event.returned


async def test_what_finished_together_is_settled_together(sale: Sale) -> None:
    """A confirmed and a declined order: rows, units and events agree, and both entries wait for their news to arrive."""
    bought, _ = await sale.order(quantity=2)
    declined, _ = await sale.order(quantity=3, user=2)
    async with tailing(sale.settings, ORDER_STATUS) as tail:
        await sale.desk.settle(
            [
                Verdict(bought.order_id, Status.CONFIRMED, None, "ch_1", 1_000, 2_000),
                Verdict(declined.order_id, Status.PAYMENT_FAILED, "no funds", None, 1_000, 2_000),
            ]
        )
        events = {e.order_id: e for e in await tail.statuses(2, bought.order_id, declined.order_id)}
    confirmed, failed = events[bought.order_id], events[declined.order_id]
    assert confirmed.status is Status.CONFIRMED
    assert settlement_of(confirmed) == (1, 3, 5, 0)
    assert (confirmed.total_cents, confirmed.charge_started_at_ms) == (2 * 99_999, 1_000)
    assert (failed.status, failed.reason) == (Status.PAYMENT_FAILED, "no funds")
    assert settlement_of(failed) == (1, 4, 8, 3)
    books = await read_books(sale.redis, sale.product)
    assert (books.available, books.held, books.sold) == (8, 0, 2)
    assert {e.state for e in books.entries.values()} == {Entry.SOLD, Entry.RELEASED}
    await sale.check()


async def test_every_step_may_be_taken_again_by_anyone(sale: Sale) -> None:
    """Killed after the row, after the units or after the news: all steps again give the same version, until the entry is gone."""
    asked, _ = await sale.order(quantity=4)
    verdict = Verdict(asked.order_id, Status.PAYMENT_FAILED, "declined")
    async with tailing(sale.settings, ORDER_STATUS) as tail:
        await sale.desk._record([verdict])  # killed here: the row is terminal, the units are still held
        assert (await read_books(sale.redis, sale.product)).held == 4
        rows = list((await read_rows(sale.pool, [asked.order_id])).values())
        await sale.desk._move_units(rows)  # and here: the units have moved, nobody knows
        await sale.desk.settle([verdict])
        await sale.desk.announce(rows)
        events = await tail.statuses(2, asked.order_id)
        assert {settlement_of(event) for event in events} == {(1, 2, 10, 4)}
        await sale.inventory.project(events)
        assert not (await read_books(sale.redis, sale.product)).entries
        await sale.desk.settle([verdict])  # nothing is owed any more: nothing is published
        other, _ = await sale.order()
        await sale.desk.settle([Verdict(other.order_id, Status.CONFIRMED)])
        await tail.statuses(1, other.order_id)
        assert len(await tail.statuses(0, asked.order_id)) == 2
    books = await read_books(sale.redis, sale.product)
    assert (books.available, books.version) == (9, 4)
    await sale.check()


async def test_two_who_settle_the_same_order_at_once_move_its_units_once(sale: Sale) -> None:
    """Payment stage, reconciler and relay may meet; the first definite answer wins and all announce it."""
    asked, _ = await sale.order(quantity=5)
    outcomes: list[Outcome] = [Status.CONFIRMED, Status.PAYMENT_FAILED] * 5
    async with tailing(sale.settings, ORDER_STATUS) as tail:
        await asyncio.gather(*(sale.desk.settle([Verdict(asked.order_id, status)]) for status in outcomes))
        events = await tail.statuses(len(outcomes), asked.order_id)
    assert len({(event.status, *settlement_of(event)) for event in events}) == 1
    assert (await read_books(sale.redis, sale.product)).version == 2
    await sale.check()


async def test_an_order_that_ends_while_its_books_are_closed_is_left_to_the_next_ones(sale: Sale) -> None:
    """The row is written and nobody waits; its entry stays, through which the relay settles and announces it."""
    asked, _ = await sale.order()
    await sale.inventory.close(sale.product)
    await asyncio.wait_for(sale.desk.settle([Verdict(asked.order_id, Status.CONFIRMED)]), 10)
    [row] = (await read_rows(sale.pool, [asked.order_id])).values()
    assert row.status is Status.CONFIRMED
    books = await read_books(sale.redis, sale.product)
    assert (books.version, books.entries[asked.order_id].state) == (1, Entry.HELD)
    await sale.redis.hset(keys.stock(sale.product), "state", "open")
    async with tailing(sale.settings, ORDER_STATUS) as tail:
        await sale.desk.announce([row])  # as the relay does
        assert settlement_of((await tail.statuses(1, asked.order_id))[0]) == (1, 2, 9, 0)
    await sale.check()


async def test_books_that_ended_an_order_otherwise_are_closed_and_made_anew(sale: Sale) -> None:
    """Postgres is the truth of how an order ended: the product closes until its books are made from it."""
    asked, _ = await sale.order()
    await sale.inventory.settle([(sale.product, asked.order_id, Entry.RELEASED)])  # as no code of ours would
    await asyncio.wait_for(sale.desk.settle([Verdict(asked.order_id, Status.CONFIRMED)]), 10)
    assert await sale.redis.hget(keys.stock(sale.product), "state") == b"closed"


async def test_an_unknown_outcome_is_said_and_moves_nothing(sale: Sale) -> None:
    """needs_reconciliation keeps the units held; the definite answer that comes late ends the order."""
    asked, _ = await sale.order(quantity=2)
    async with tailing(sale.settings, ORDER_STATUS) as tail:
        await sale.desk.settle([Verdict(asked.order_id, Status.NEEDS_RECONCILIATION, "timeout", None, 5, 6)])
        unresolved = (await tail.statuses(1, asked.order_id))[0]
        assert (unresolved.status, unresolved.reason) == (Status.NEEDS_RECONCILIATION, "timeout")
        books = await read_books(sale.redis, sale.product)
        assert (books.held, books.version) == (2, 1)
        await sale.desk.settle([Verdict(asked.order_id, Status.CONFIRMED, None, "ch_late", 90, 91)])
        ended = (await tail.statuses(2, asked.order_id))[-1]
    assert (ended.status, ended.charge_started_at_ms) == (Status.CONFIRMED, 5)
    await sale.check()


async def test_a_product_whose_books_cannot_be_opened_keeps_no_other_product_waiting(
    sale: Sale, new_product: Callable[[], ProductId]
) -> None:
    """Settled in one batch with it, the other product's order ends, and the call returns."""
    other = new_product()
    await create_product(sale.pool, other, 10)
    await open_books(sale.redis, other, 10)
    stuck, _ = await sale.order()
    fine, _ = await Sale(other, sale.settings, sale.redis, sale.inventory, sale.pool, sale.desk).order()
    await sale.inventory.close(sale.product)
    async with tailing(sale.settings, ORDER_STATUS) as tail:
        verdicts = [Verdict(asked.order_id, Status.CONFIRMED) for asked in (stuck, fine)]
        await asyncio.wait_for(sale.desk.settle(verdicts), 10)
        [told] = await tail.statuses(1, fine.order_id)
        assert told.status is Status.CONFIRMED
        assert not await tail.statuses(0, stuck.order_id)
