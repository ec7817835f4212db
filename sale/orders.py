"""An order's row as every room reads it: a Postgres record in, typed facts out, and the events that announce it."""

from collections.abc import Sequence
from datetime import datetime

import asyncpg
import msgspec
from msgspec import UNSET

from sale.books.inventory import Settlement
from sale.tables.queries import SQL
from schemas.clock import Moment, to_ms
from schemas.events import OrderPlaced, OrderStatusChanged, Step
from schemas.ids import OrderId, ProductId, UserId
from schemas.order_state import Status

REFUSED_BY_DATABASE = "no stock left in the database"  # the reason that place_orders writes


class OrderRow(msgspec.Struct, frozen=True):
    """One row of `orders`, as the statements of queries.sql select it."""

    id: OrderId
    product_id: ProductId
    user_id: UserId
    quantity: int
    unit_price_cents: int
    currency: str
    status: Status
    reason: str | None
    placed_at_ms: int
    created_at: datetime
    updated_at: datetime
    read_at: datetime  # by the clock of Postgres, which dated the others too
    charge_started_at_ms: int | None
    charge_answered_at_ms: int | None
    seen: Moment = msgspec.field(default_factory=Moment)

    @property
    def total_cents(self) -> int:
        return self.unit_price_cents * self.quantity

    def age_s(self) -> float:
        """Now: what Postgres said when it was read, and how long ago that was."""
        return (self.read_at - self.created_at).total_seconds() + self.seen.ago_s()

    def unchanged_s(self) -> float:
        """For how long it has been what it is now."""
        return (self.read_at - self.updated_at).total_seconds() + self.seen.ago_s()

    @classmethod
    def of(cls, record: asyncpg.Record) -> "OrderRow":
        fields = dict(record)
        fields["status"] = Status(fields["status"])
        return cls(**fields)


async def read_rows(pool: asyncpg.Pool, ids: Sequence[OrderId]) -> dict[OrderId, OrderRow]:
    """The rows that exist. Read entries first: a row read later can only be further on."""
    if not ids:
        return {}
    return {row.id: row for row in map(OrderRow.of, await pool.fetch(SQL.orders_by_id, list(ids)))}


async def place_rows(pool: asyncpg.Pool, events: Sequence[OrderPlaced], *, vouched: bool) -> list[asyncpg.Record]:
    """One batch of reservations into rows, each an outcome (see place_orders). `vouched`: a held entry stands for them."""
    records: list[asyncpg.Record] = await pool.fetch(
        SQL.place_orders,
        [e.order_id for e in events],
        [e.product_id for e in events],
        [e.user_id for e in events],
        [e.quantity for e in events],
        [e.epoch for e in events],
        [e.version for e in events],
        [e.available for e in events],
        [e.placed_at_ms for e in events],
        [None if e.key_hash is UNSET else e.key_hash for e in events],
        [vouched] * len(events),
    )
    return records


def status_event(row: OrderRow, *, status: Status, steps: tuple[Step, ...], at_ms: int) -> OrderStatusChanged:
    """An order at `status`; of a terminal one, what `terminal_event` adds is left out."""
    return OrderStatusChanged(
        order_id=row.id,
        product_id=row.product_id,
        user_id=row.user_id,
        quantity=row.quantity,
        total_cents=row.total_cents,
        currency=row.currency,
        status=status,
        placed_at_ms=row.placed_at_ms,
        at_ms=at_ms,
        steps=steps,
        reason=row.reason or UNSET,
    )


def terminal_event(row: OrderRow, settlement: Settlement | None) -> OrderStatusChanged:
    """The news that an order ended; `settlement` is None only where no units were ever held by the books in force."""
    at_ms = to_ms(row.updated_at)
    started = row.charge_started_at_ms
    charging = (Step(Status.PROCESSING_PAYMENT, started),) if started else ()
    steps = (*charging, Step(row.status, at_ms))
    return msgspec.structs.replace(
        status_event(row, status=row.status, steps=steps, at_ms=at_ms),
        charge_started_at_ms=started or UNSET,
        charge_answered_at_ms=row.charge_answered_at_ms or UNSET,
        epoch=settlement.epoch if settlement else UNSET,
        version=settlement.version if settlement else UNSET,
        available=settlement.available if settlement else UNSET,
        returned=settlement.returned if settlement else UNSET,
    )
