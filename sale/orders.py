"""The row of an order as all rooms read it from Postgres, and the events that announce it."""

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

REFUSED_BY_DATABASE = "no stock left in the database"  # the reason written by place_orders


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
    read_at: datetime  # by the clock of Postgres, like the other times
    charge_started_at_ms: int | None
    charge_answered_at_ms: int | None
    seen: Moment = msgspec.field(default_factory=Moment)

    @property
    def total_cents(self) -> int:
        return self.unit_price_cents * self.quantity

    def age_s(self) -> float:
        """The present age: the age by Postgres when it was read, plus the time since then."""
        return (self.read_at - self.created_at).total_seconds() + self.seen.ago_s()

    def unchanged_s(self) -> float:
        """The time since its last change."""
        return (self.read_at - self.updated_at).total_seconds() + self.seen.ago_s()

    @classmethod
    def of(cls, record: asyncpg.Record) -> "OrderRow":
        fields = dict(record)
        fields["status"] = Status(fields["status"])
        return cls(**fields)


async def read_rows(pool: asyncpg.Pool, ids: Sequence[OrderId]) -> dict[OrderId, OrderRow]:
    """The rows that exist. Read entries before rows: a row that is read later can only be further on."""
    if not ids:
        return {}
    return {row.id: row for row in map(OrderRow.of, await pool.fetch(SQL.orders_by_id, list(ids)))}


async def place_rows(pool: asyncpg.Pool, events: Sequence[OrderPlaced], *, vouched: bool) -> list[asyncpg.Record]:
    """Insert one batch of reservations; one outcome each (see place_orders). `vouched`: held entries confirm them."""
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
    """The event of an order at `status`, without the fields that `terminal_event` adds."""
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
    """The event that an order has ended. `settlement` is None only if the books in force never held its units."""
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
