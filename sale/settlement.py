"""Settles orders: writes the row, moves the units, publishes the end, in this order. Every order ends on this path.

The payment stage, the reconciler, the relay and the operator use it. Every step is idempotent: after a kill half-way, any
of them may repeat all steps, because the row's guard, the entry's version and the order id give the same result.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

import asyncpg
import msgspec

from infra import tracing
from infra.kafka.publisher import Publisher
from infra.logs import get_logger
from infra.metrics.definitions import (
    ANSWERS_TOO_LATE,
    ORDER_ENDED,
    ORDERS_LEFT,
    ORDERS_SETTLED,
    VERDICTS_SET_ASIDE,
)
from infra.postgres.batches import store
from infra.postgres.pool import UNAVAILABLE
from infra.redis.client import RedisError
from infra.text import cleaned
from infra.tracing import Traced
from infra.waits import retry_until_ok
from sale.books.inventory import Inventory, NotVerified, SettledOtherwise, Settlement
from sale.orders import OrderRow, read_rows, status_event, terminal_event
from sale.tables.queries import SQL
from schemas.clock import now_ms
from schemas.codec import encode
from schemas.events import OrderStatusChanged, Step
from schemas.ids import OrderId, ProductId
from schemas.order_state import TERMINAL, Status, outcome_of
from schemas.topics import ORDER_STATUS

REDIS_ERRORS = (RedisError, OSError)
IN_HAND_AFTER_S = 2.0  # no charge starts from a row read longer ago: an operator may be settling the order by then
REASON_MAX = 300  # characters of an error
_settled, _ended = ORDERS_SETTLED.make(), ORDER_ENDED.make()
_set_aside, _too_late, _left = VERDICTS_SET_ASIDE.make(), ANSWERS_TOO_LATE.make(), ORDERS_LEFT.make()
log = get_logger()


class Verdict(msgspec.Struct, frozen=True):
    """The result of one payment. Times are milliseconds since the epoch."""

    order_id: OrderId
    status: Literal[Status.CONFIRMED, Status.PAYMENT_FAILED, Status.NEEDS_RECONCILIATION]
    reason: str | None = None
    charge_id: str | None = None
    started_at_ms: int | None = None
    answered_at_ms: int | None = None


OnRejected = Callable[[Verdict, str], Awaitable[None]]


class SettlementDesk:
    """Settles a batch of orders with one SQL function, one pipeline of settle.lua and one send."""

    def __init__(self, pool: asyncpg.Pool, inventory: Inventory, publisher: Publisher) -> None:
        self._pool = pool
        self._inventory = inventory
        self._publisher = publisher

    async def settle(self, verdicts: Sequence[Verdict], traced: Traced | None = None) -> None:
        """Returns when the effects of all verdicts are acknowledged, or left to the rebuild of their books.

        While Postgres, Redis or Kafka is down it waits.
        """
        await self.conclude(await self.record(verdicts, traced), traced)

    async def record(
        self, verdicts: Sequence[Verdict], traced: Traced | None = None, on_rejected: OnRejected | None = None
    ) -> list[OrderRow]:
        """The first half: write the rows, and return them as they are afterwards. Pass them to `conclude`.

        A verdict that Postgres can never store is set aside: `on_rejected` is called, and the order needs reconciliation.
        """

        async def set_aside(verdict: Verdict, error: Exception) -> list[OrderRow]:
            reason = f"postgres cannot store the provider's answer: {cleaned(str(error), REASON_MAX)}"
            log.error("verdict set aside", order_id=verdict.order_id, status=verdict.status, reason=reason)
            _set_aside.inc()
            if on_rejected is not None:
                await on_rejected(verdict, reason)
            unknown = msgspec.structs.replace(
                verdict, status=Status.NEEDS_RECONCILIATION, reason=reason, charge_id=None
            )
            return await store([unknown], self._record, self._leave_unchanged)

        with tracing.batch_step("postgres settle_orders", traced):
            rows = await store(verdicts, self._record, set_aside)
        _log_contradictions(verdicts, rows)
        return rows

    async def _leave_unchanged(self, verdict: Verdict, error: Exception) -> list[OrderRow]:
        """Postgres can store nothing of this order: its row stays unchanged, and its units stay held."""
        log.error("row left as it is", order_id=verdict.order_id, error=repr(error))
        rows = await retry_until_ok("postgres", UNAVAILABLE, read_rows, self._pool, [verdict.order_id])
        return list(rows.values())

    async def conclude(self, rows: Sequence[OrderRow], traced: Traced | None = None) -> None:
        """The second half: move the units, and publish the end until it is acknowledged."""
        ended = [row for row in rows if row.status in TERMINAL]
        await self.announce(ended, traced)
        for status, count in Counter(row.status for row in rows).items():
            _settled.labels(status).inc(count)
        _ended.observe(now_ms(), (row.placed_at_ms for row in ended))
        await self._publish([_unresolved(row) for row in rows if row.status is Status.NEEDS_RECONCILIATION], traced)

    async def announce(self, rows: Sequence[OrderRow], traced: Traced | None = None) -> None:
        """Move the units of terminal rows (once), and publish their end with the version of that move (again if needed).

        Orders of a product whose books are not in force are left to the rebuild: it gives every ended but unannounced order
        an entry, and the relay settles those. So the other products do not wait.
        """
        products = {row.product_id for row in rows}
        async with asyncio.TaskGroup() as group:
            for product in sorted(products):
                group.create_task(self._announce([row for row in rows if row.product_id == product], traced))

    async def _announce(self, rows: Sequence[OrderRow], traced: Traced | None) -> None:
        traced = {row.id: traced[row.id] for row in rows if row.id in traced} if traced else None
        with tracing.batch_step("redis settle", traced):
            try:
                settlements = await retry_until_ok("redis", REDIS_ERRORS, self._move_units, rows)
            except NotVerified:
                _left.inc(len(rows))
                log.warning("left to the next books", product=rows[0].product_id, orders=len(rows), order_id=rows[0].id)
                return
        await self._publish(
            [terminal_event(row, moved) for row, moved in zip(rows, settlements, strict=True) if moved is not None],
            traced,
        )

    async def announce_unheld(self, rows: Sequence[OrderRow]) -> None:
        """Publish the end of failed orders that no books hold: no units move, so there is no version."""
        await self._publish([terminal_event(row, None) for row in rows])

    async def _record(self, verdicts: Sequence[Verdict]) -> list[OrderRow]:
        records = await self._pool.fetch(
            SQL.settle_orders,
            [v.order_id for v in verdicts],
            [v.status for v in verdicts],
            [v.reason for v in verdicts],
            [v.charge_id for v in verdicts],
            [v.started_at_ms for v in verdicts],
            [v.answered_at_ms for v in verdicts],
        )
        return [OrderRow.of(record) for record in records]

    async def _move_units(self, rows: Sequence[OrderRow]) -> list[Settlement | None]:
        try:
            return await self._inventory.settle(
                [(row.product_id, row.id, outcome_of(row.status)) for row in rows],
                declined={row.id for row in rows if row.status is Status.PAYMENT_FAILED},
            )
        except SettledOtherwise as error:
            # Postgres decides how an order ended: the books are rebuilt from it.
            log.error("redis settled an order the other way", order_id=error.order_id, error=str(error))
            await self._inventory.close(ProductId(rows[0].product_id))
            raise NotVerified from error

    async def _publish(self, events: Sequence[OrderStatusChanged], traced: Traced | None = None) -> None:
        records = ((ORDER_STATUS, event.order_id, encode(event)) for event in events)
        await self._publisher.publish_all(records, tracing.headers_of(traced))


def _log_contradictions(verdicts: Sequence[Verdict], rows: Sequence[OrderRow]) -> None:
    """Log definite answers for orders that have ended with the opposite result. Nothing changes; an operator must know."""
    said = {verdict.order_id: verdict.status for verdict in verdicts if verdict.status in TERMINAL}
    for row in rows:
        if row.status in TERMINAL and said.get(row.id, row.status) is not row.status:
            log.error("answered too late", order_id=row.id, answer=said[row.id], ended=row.status)
            _too_late.labels(said[row.id]).inc()


def _unresolved(row: OrderRow) -> OrderStatusChanged:
    at_ms = now_ms()
    steps = (Step(Status.NEEDS_RECONCILIATION, at_ms),)
    return status_event(row, status=Status.NEEDS_RECONCILIATION, steps=steps, at_ms=at_ms)
