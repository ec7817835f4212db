"""Writes reservations as rows of `orders`, one statement per batch, and does the next step of each outcome.

At least once, and every step is idempotent: a record that is read again finds its row.
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from msgspec import UNSET

from infra import tracing
from infra.logs import get_logger
from infra.metrics.definitions import ORDER_STORED, ORDERS_PLACED
from infra.postgres.batches import store
from infra.postgres.pool import RECORDS_FAULT, UNAVAILABLE
from infra.text import cleaned
from infra.tracing import Traced
from infra.waits import retry_until_ok
from sale.orders import place_rows
from sale.settlement import REDIS_ERRORS
from sale.tables.queries import SQL
from schemas.clock import now_ms
from schemas.codec import encode
from schemas.events import OrderPlaced, OrderStatusChanged, PaymentRequested, Step
from schemas.ids import OrderId, ProductId
from schemas.order_state import Status
from schemas.topics import ORDER_STATUS, PAYMENTS
from streams.app import Record, Resources, dead_letter

REASON_MAX = 300  # characters of an error
log = get_logger()
orders_placed, _stored = ORDERS_PLACED.make(), ORDER_STORED.make()


class Placement(NamedTuple):
    """One record of `orders`, and the reservation in it."""

    record: Record
    event: OrderPlaced

    @property
    def order_id(self) -> OrderId:
        return OrderId(self.event.order_id)


class Outcome(StrEnum):
    """What `place_orders` (queries.sql) decided about one reservation."""

    NEW = "new"  # inserted: to be paid, or `failed` if the database had no stock left
    KNOWN = "known"  # its row existed: a redelivery
    STALE = "stale"  # no row, and a rebuild has replaced the books that made the reservation
    NO_PRODUCT = "no_product"


class Placed(NamedTuple):
    """The rest: redeliveries, and reservations of replaced books."""

    known: list[Placement]
    stale: list[Placement]


class _Answer(NamedTuple):
    outcome: Outcome
    status: Status | None


class Placing:
    """Inserts orders. Waits while Postgres, Redis or Kafka is down."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    async def place(self, placements: Sequence[Placement], *, vouched: bool, traced: Traced | None = None) -> Placed:
        """Insert new orders and request their payment; send orders that can never be placed to the dead letters.

        `vouched`: the books in force hold the units of these orders, so no epoch is compared and none is stale.
        """
        answers, set_aside = await self._store(placements, vouched, traced)
        found: dict[Outcome, list[Placement]] = {outcome: [] for outcome in Outcome}
        for placement in placements:
            if placement.order_id in answers:
                found[answers[placement.order_id].outcome].append(placement)
        for outcome, some in found.items():
            if some:
                orders_placed.labels(outcome).inc(len(some))
        new = [placement.event for placement in found[Outcome.NEW]]
        failed = {event.order_id for event in new if answers[OrderId(event.order_id)].status is Status.FAILED}
        _stored.observe(now_ms(), (event.placed_at_ms for event in new))
        await self._refuse({event.product_id for event in new if event.order_id in failed})
        await self.request_payment([event for event in new if event.order_id not in failed], traced)
        for record, event in found[Outcome.NO_PRODUCT]:
            await dead_letter(record, self._resources.dead_letters, f"product {event.product_id} is not in postgres")
        return Placed(found[Outcome.KNOWN] + set_aside, found[Outcome.STALE])

    async def request_payment(self, events: Iterable[OrderPlaced], traced: Traced | None = None) -> None:
        at_ms = now_ms()
        records = []
        for event in events:
            request = PaymentRequested(order_id=event.order_id, product_id=event.product_id, requested_at_ms=at_ms)
            records.append((PAYMENTS, event.order_id, encode(request)))
            records.append((ORDER_STATUS, event.order_id, encode(_awaiting_payment(event, at_ms))))
        await self._resources.publisher.publish_all(records, tracing.headers_of(traced))

    async def record_failed(self, event: OrderPlaced, reason: str, *, key_lost: bool) -> None:
        """Write the order as a `failed` row, uncharged, unless it has a row already.

        `key_lost`: in Redis the idempotency key no longer names this order; another order has the key, or may get it.
        """
        await retry_until_ok(
            "postgres",
            UNAVAILABLE,
            self._resources.pool.execute,
            SQL.fail_order,
            event.order_id,
            event.product_id,
            event.user_id,
            event.quantity,
            reason,
            event.epoch,
            event.version,
            event.available,
            None if event.key_hash is UNSET else event.key_hash,
            event.placed_at_ms,
            key_lost,
        )

    async def _store(
        self, placements: Sequence[Placement], vouched: bool, traced: Traced | None
    ) -> tuple[Mapping[OrderId, _Answer], list[Placement]]:
        """The answers of Postgres by order, and the orders that it cannot store but now has as a `failed` row."""
        set_aside: list[Placement] = []

        async def insert(some: Sequence[Placement]) -> Iterable[tuple[OrderId, _Answer]]:
            return (await self._insert(some, vouched)).items()

        async def dead_letter_alone(placement: Placement, error: Exception) -> tuple[()]:
            if await self._dead_letter_and_fail(placement, f"postgres: {cleaned(str(error), REASON_MAX)}"):
                set_aside.append(placement)
            return ()

        with tracing.batch_step("postgres place_orders", traced):
            return dict(await store(placements, insert, dead_letter_alone)), set_aside

    async def _insert(self, placements: Sequence[Placement], vouched: bool) -> dict[OrderId, _Answer]:
        rows = await place_rows(self._resources.pool, [event for _, event in placements], vouched=vouched)
        return {
            row["order_id"]: _Answer(Outcome(row["outcome"]), Status(row["status"]) if row["status"] else None)
            for row in rows
        }

    async def _refuse(self, products: Iterable[int]) -> None:
        """The database refused a unit that Redis had given. Redis had too many, so its books are rebuilt.

        The refused order is already `failed`. The rebuild keeps an entry for it, through which its end is announced.
        """
        for product in products:
            await retry_until_ok("redis", REDIS_ERRORS, self._resources.inventory.close, ProductId(product))

    async def _dead_letter_and_fail(self, placement: Placement, reason: str) -> bool:
        """Whether the order could be written as `failed`. Then its units return to stock, as after any redelivery."""
        await dead_letter(placement.record, self._resources.dead_letters, reason)
        try:
            await self.record_failed(placement.event, reason, key_lost=False)
        except RECORDS_FAULT as error:
            log.error("neither placed nor failed: its units stay held", order=placement.order_id, error=str(error))
            return False
        return True


def _awaiting_payment(event: OrderPlaced, at_ms: int) -> OrderStatusChanged:
    steps = tuple(Step(status, at_ms) for status in (Status.PROCESSING, Status.PENDING, Status.AWAITING_PAYMENT))
    return OrderStatusChanged(
        order_id=event.order_id,
        product_id=event.product_id,
        user_id=event.user_id,
        quantity=event.quantity,
        total_cents=event.unit_price_cents * event.quantity,
        currency=event.currency,
        status=Status.AWAITING_PAYMENT,
        placed_at_ms=event.placed_at_ms,
        at_ms=at_ms,
        steps=steps,
    )
