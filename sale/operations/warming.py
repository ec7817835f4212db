"""Runs every hot path on scratch data shortly before a sale, and leaves nothing of it: Redis, Postgres, then the brokers."""

from typing import Any

import msgspec

from infra.kafka.publisher import Publisher
from infra.kafka.warming import warm_up
from infra.settings import Settings
from sale.books.inventory import Held, Inventory, Reservation
from sale.books.scratch import NOBODY, SCRATCH, scratch_books
from sale.operations.operations import Stores, connected
from sale.orders import place_rows, terminal_event
from sale.settlement import SettlementDesk, Verdict
from schemas.codec import decode
from schemas.events import OrderPlaced
from schemas.ids import OrderId, new_order_id
from schemas.order_state import Entry, Status

ORDERS = 200
SCRATCH_ROW = "INSERT INTO products (id, name, price_cents, currency, initial) VALUES ($1, 'scratch', 1, 'USD', $2)"


class Warmed(msgspec.Struct, frozen=True):
    """Orders that passed Redis' scripts and Postgres' statements, and records that passed the brokers."""

    orders: int
    records: int


async def warm(settings: Settings, seconds: float) -> Warmed:
    """`seconds` for the brokers. Raises the servers' errors."""
    async with connected(settings) as stores:
        orders = await _sell(stores)
    return Warmed(orders, await warm_up(settings, seconds))


async def _sell(stores: Stores) -> int:
    """Reserve, store, settle and project, without a record on the log; the rows are rolled back."""
    wishes = [Reservation(new_order_id(), NOBODY, SCRATCH, 1, 1, "USD") for _ in range(ORDERS)]
    inventory = Inventory(stores.redis)
    async with stores.pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        try:
            await connection.execute(SCRATCH_ROW, SCRATCH, ORDERS)  # fails if somebody sells a product of this number
            async with scratch_books(stores.redis, [wish.order_id for wish in wishes]):
                return await _run(connection, inventory, stores.publisher, wishes)
        finally:
            await transaction.rollback()


async def _run(connection: Any, inventory: Inventory, publisher: Publisher, wishes: list[Reservation]) -> int:
    held = [await inventory.reserve(wish) for wish in wishes]
    placed = [
        event for answer in held if isinstance(answer, Held) and isinstance(event := decode(answer.value), OrderPlaced)
    ]
    await place_rows(connection, placed, vouched=False)
    verdicts = [
        Verdict(OrderId(e.order_id), Status.CONFIRMED, None, e.order_id, e.placed_at_ms, e.placed_at_ms) for e in placed
    ]
    rows = await SettlementDesk(connection, inventory, publisher).record(verdicts)
    settled = await inventory.settle([(SCRATCH, row.id, Entry.SOLD) for row in rows])
    await inventory.project([terminal_event(row, units) for row, units in zip(rows, settled, strict=True)])
    return len(rows)
