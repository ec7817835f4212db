"""The statements through which orders change, as the stages call them, for tests on a real database."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import asyncpg

from sale.orders import OrderRow
from sale.tables.queries import SQL
from schemas.ids import OrderId, ProductId, new_order_id
from schemas.limits import DEFAULT_MAX_QUANTITY
from schemas.order_state import Status

PRICE_CENTS = 99_999


@dataclass(frozen=True, slots=True)
class Placed:
    """One order.placed as the order stage hands it to place_orders."""

    order_id: OrderId
    product_id: ProductId
    version: int
    quantity: int = 1
    epoch: int = 1
    user_id: int = 1
    vouched: bool = False

    def but(self, **changes: Any) -> Self:
        return replace(self, **changes)


def placed(product: ProductId, version: int, quantity: int = 1, **fields: object) -> Placed:
    return Placed(new_order_id(), product, version, quantity).but(**fields)


async def create_product(pool: asyncpg.Pool, product: ProductId, initial: int, *, epoch: int = 1) -> None:
    """A product of which `epoch` books have been made."""
    await pool.execute(
        SQL.create_product,
        product,
        f"thing {product}",
        PRICE_CENTS,
        "USD",
        initial,
        None,
        None,
        None,
        DEFAULT_MAX_QUANTITY,
    )
    for _ in range(epoch):
        await pool.fetchval(SQL.draw_epoch, product)


Outcome = tuple[str, Status | None]


async def place(pool: asyncpg.Pool, batch: Sequence[Placed]) -> dict[OrderId, Outcome]:
    """What became of each order: new, known, stale or no_product; and its row's status."""
    records = await pool.fetch(
        SQL.place_orders,
        [p.order_id for p in batch],
        [p.product_id for p in batch],
        [p.user_id for p in batch],
        [p.quantity for p in batch],
        [p.epoch for p in batch],
        [p.version for p in batch],
        [0 for _ in batch],
        [1_000 for _ in batch],
        [None for _ in batch],
        [p.vouched for p in batch],
    )
    assert len(records) == len({p.order_id for p in batch}), "one answer an order"
    return {
        OrderId(r["order_id"]): (r["outcome"], None if r["status"] is None else Status(r["status"])) for r in records
    }


async def settle(
    pool: asyncpg.Pool, verdicts: Sequence[tuple[OrderId, Status]], *, charge_id: str | None = None, at_ms: int = 2_000
) -> dict[OrderId, OrderRow]:
    """The rows as they stand afterwards, whoever wrote them."""
    records = await pool.fetch(
        SQL.settle_orders,
        [order_id for order_id, _ in verdicts],
        [status.value for _, status in verdicts],
        [None for _ in verdicts],
        [charge_id for _ in verdicts],
        [at_ms for _ in verdicts],
        [at_ms for _ in verdicts],
    )
    return {row.id: row for row in map(OrderRow.of, records)}


async def taken(pool: asyncpg.Pool, product: ProductId) -> int:
    """The counter by which the database refuses, checked against the rows it counts."""
    row = await pool.fetchrow(
        """SELECT p.taken, p.initial, (SELECT coalesce(sum(o.quantity), 0) FROM orders o
             WHERE o.product_id = p.id AND o.status NOT IN ('failed', 'payment_failed')) AS live
           FROM products p WHERE p.id = $1""",
        product,
    )
    assert row is not None
    assert row["taken"] == row["live"]
    assert 0 <= row["taken"] <= row["initial"]
    return int(row["taken"])
