"""Topic `orders` in; rows in Postgres, then topics `payments` and `order-status` out. At least once, every step idempotent.

`faust -A streams.order_stage worker`, or `thrones stage order`.
"""

import asyncio
from collections.abc import Iterable, Sequence

from msgspec import UNSET

from infra import tracing
from infra.logs import get_logger
from infra.metrics.definitions import ORDER_STORED, ORDERS_PLACED
from infra.pace import Pace
from infra.postgres.batches import store
from infra.postgres.pool import RECORDS_FAULT, UNAVAILABLE
from infra.text import cleaned
from infra.waits import retry_until_ok
from sale.books.entry import HeldEntry
from sale.books.inventory import Held, Known, Refused, Reservation
from sale.orders import OrderRow, now_ms, place_rows, read_rows
from sale.settlement import REDIS_ERRORS
from sale.tables.queries import SQL
from schemas.codec import encode
from schemas.events import OrderPlaced, OrderStatusChanged, PaymentRequested, Step, StockOpened
from schemas.ids import OrderId, ProductId, UserId
from schemas.order_state import Entry, Next, Status, advance
from schemas.topics import ORDER_STAGE_GROUP, ORDER_STATUS, ORDERS, PAYMENTS
from streams.app import Acks, Record, Resources, bury, count_taken, decode_or_bury, headers_of, stage_app
from streams.inbox import ARRIVAL_S, BUSY_PER_S, Inbox
from streams.lanes import Lanes, by_product

REASON_MAX = 300  # characters of an error
MAX_BATCH = 500  # rows in one statement: about 11 ms of Postgres
Placement = tuple[Record, OrderPlaced]
log = get_logger()

_placed, _stored = ORDERS_PLACED.make(), ORDER_STORED.make()


class OrderStage:
    """One batch at a time: whatever arrived while the last one was being written is the next."""

    def __init__(self, resources: Resources, acks: Acks) -> None:
        self._pool = resources.pool
        self._inventory = resources.inventory
        self._publisher = resources.publisher
        self._desk = resources.desk
        self._dead_letters = resources.dead_letters
        self._acks = acks
        self._inbox: Inbox[Record] = Inbox(Pace(BUSY_PER_S, ARRIVAL_S))
        self._traced: dict[str, tracing.Span] = {}  # orders of the present batch
        self._known: Lanes[Placement] = Lanes(self._finish_known, MAX_BATCH)
        self._stale: Lanes[Placement] = Lanes(self._finish_stale, MAX_BATCH)
        self._in_lanes: set[Record] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False

    def take(self, record: Record) -> None:
        self._inbox.put(record)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as self._group:
            while not self._draining:
                batch = await self._inbox.take(MAX_BATCH)
                self._idle.clear()
                count_taken(batch)
                await self._process(batch)
                self._acks.finish([record for record in batch if record not in self._in_lanes])
                self._idle.set()

    async def drain(self) -> None:
        self._draining = True
        await self._idle.wait()

    async def _process(self, batch: list[Record]) -> None:
        placements: list[Placement] = []
        for record in batch:
            event = await decode_or_bury(record, self._dead_letters)
            if isinstance(event, OrderPlaced):
                placements.append((record, event))
                if tracing.on is not None:
                    self._follow(record, event)
            elif event is not None and not isinstance(event, StockOpened):
                await bury(record, self._dead_letters, f"a {type(event).__name__} does not belong on {ORDERS.name}")
        try:
            await self._place(placements, vouched=False)
        finally:
            self._end_traces()

    def _follow(self, record: Record, event: OrderPlaced) -> None:
        if tracing.on is not None and (span := tracing.on.follow("store order", headers_of(record))) is not None:
            span.set_attributes(order_id=event.order_id)
            self._traced[event.order_id] = span

    def _end_traces(self) -> None:
        for span in self._traced.values():
            span.end()
        self._traced.clear()

    async def _place(self, placements: list[Placement], *, vouched: bool) -> None:
        """Insert, then do what each outcome owes. What can never be placed is set aside, alone."""
        if not placements:
            return

        async def insert(some: Sequence[Placement]) -> Iterable[tuple[str, tuple[str, str | None]]]:
            return (await self._insert(some, vouched)).items()

        async def set_aside(placement: Placement, error: Exception) -> tuple[()]:
            await self._bury_and_fail(placement, f"postgres: {cleaned(str(error), REASON_MAX)}", vouched=vouched)
            return ()

        with tracing.batch_step("postgres place_orders", None if vouched else self._traced):
            outcomes = dict(await store(placements, insert, set_aside))
        by_outcome: dict[str, list[Placement]] = {"new": [], "known": [], "stale": [], "no_product": []}
        refused: set[int] = set()
        for placement in placements:
            if placement[1].order_id not in outcomes:
                continue  # set aside
            outcome, status = outcomes[placement[1].order_id]
            by_outcome[outcome].append(placement)
            if outcome == "new" and status == Status.FAILED:
                refused.add(placement[1].product_id)
        _stored.observe(now_ms(), (event.placed_at_ms for _, event in by_outcome["new"]))
        for outcome, found in by_outcome.items():
            if found:
                _placed.labels(outcome).inc(len(found))
        await self._refuse(refused)
        await self._request_payment(
            [event for _, event in by_outcome["new"] if outcomes[event.order_id][1] != Status.FAILED]
        )
        for record, event in by_outcome["no_product"]:
            await bury(record, self._dead_letters, f"product {event.product_id} is not in postgres")
        await self._go_on_with(by_outcome["known"], vouched=vouched)
        await self._put_in_lanes(by_outcome["stale"], self._stale)

    async def _go_on_with(self, known: list[Placement], *, vouched: bool) -> None:
        """In a lane; what is vouched for is in one already, which acknowledges it when this returns."""
        if vouched:
            await self._advance_known([event for _, event in known])
        else:
            await self._put_in_lanes(known, self._known)

    async def _put_in_lanes(self, placements: list[Placement], lanes: Lanes[Placement]) -> None:
        """What needs Redis may have to wait for it, and is acknowledged by its lane."""
        self._in_lanes.update(record for record, _ in placements)
        await lanes.put(self._group, by_product(placements, lambda placement: placement[1].product_id))

    async def _finish_known(self, placements: list[Placement]) -> None:
        await self._advance_known([event for _, event in placements])
        self._leave_lanes(placements)

    async def _finish_stale(self, placements: list[Placement]) -> None:
        await self._vouch(placements)
        self._leave_lanes(placements)

    def _leave_lanes(self, placements: list[Placement]) -> None:
        records = [record for record, _ in placements]
        self._in_lanes.difference_update(records)
        self._acks.finish(records)

    async def _insert(self, placements: Sequence[Placement], vouched: bool) -> dict[str, tuple[str, str | None]]:
        records = await place_rows(self._pool, [event for _, event in placements], vouched=vouched)
        return {record["order_id"]: (record["outcome"], record["status"]) for record in records}

    async def _refuse(self, products: set[int]) -> None:
        """The database refused a unit that Redis had given: Redis was too high, so its books are made anew.

        The refused order is `failed` already; the rebuild keeps an entry for it, through which its end is announced.
        """
        for product in products:
            await retry_until_ok("redis", REDIS_ERRORS, self._inventory.close, ProductId(product))

    async def _request_payment(self, events: list[OrderPlaced]) -> None:
        at_ms = now_ms()
        records = []
        for event in events:
            request = PaymentRequested(order_id=event.order_id, product_id=event.product_id, requested_at_ms=at_ms)
            records.append((PAYMENTS, event.order_id, encode(request)))
            records.append((ORDER_STATUS, event.order_id, encode(_awaiting_payment(event, at_ms))))
        await self._publisher.publish_all(records, tracing.headers_of(self._traced))

    async def _advance_known(self, events: list[OrderPlaced]) -> None:
        """Redeliveries: read the entry, then the row, and do what the order is owed now."""
        if not events:
            return
        entries: dict[OrderId, HeldEntry] = {}
        for product in {event.product_id for event in events}:
            ids = [OrderId(event.order_id) for event in events if event.product_id == product]
            entries |= await retry_until_ok("redis", REDIS_ERRORS, self._inventory.entries, ProductId(product), ids)
        ids = [OrderId(event.order_id) for event in events]
        rows = await retry_until_ok("postgres", UNAVAILABLE, read_rows, self._pool, ids)
        ended: list[OrderRow] = []
        unheld: list[OrderRow] = []
        unpaid: list[OrderPlaced] = []
        for event in events:
            row = rows[OrderId(event.order_id)]
            entry = entries[row.id].state if row.id in entries else Entry.NONE
            match advance(row.status, entry):
                case Next.PAY | Next.REBUILD:
                    # Without an entry the relay decides whether the books are wrong; asking for payment is right anyway.
                    unpaid.append(event)
                case Next.SETTLE | Next.ANNOUNCE:
                    ended.append(row)
                case Next.DONE if row.status is Status.FAILED:
                    unheld.append(row)  # a failed order that was never held may have died before its announcement
                case _:
                    pass
        await self._desk.announce(ended)
        await self._desk.announce_unheld(unheld)
        await self._request_payment(unpaid)

    async def _vouch(self, placements: list[Placement]) -> None:
        """Records of books that a rebuild has replaced: believed where an entry holds the units, else reserved again.

        Without books in force there is nothing to reserve from: such a record is parked, and keeps no other waiting.
        """
        if not placements:
            return
        held: list[Placement] = []
        waiting: list[Placement] = []
        for record, event in placements:
            product, order_id = ProductId(event.product_id), OrderId(event.order_id)
            entries = await retry_until_ok("redis", REDIS_ERRORS, self._inventory.entries, product, [order_id])
            entry = entries.get(order_id)
            if entry is None:
                if not await self._reserve_again(record, event):
                    waiting.append((record, event))
            elif entry.state is Entry.HELD and (entry.epoch, entry.version) > (event.epoch, event.version):
                # Reserved again by a reading of this record that may have died before it said so: the log has no gaps.
                await self._publisher.publish(ORDERS, event.order_id, entry.placed_value)
            else:
                held.append((record, event))
        await self._place(held, vouched=True)
        await self._park(waiting)

    async def _park(self, placements: list[Placement]) -> None:
        """In Postgres, where the rebuild that follows reads them; the relay sends them again once the books are in force."""
        if not placements:
            return
        product = placements[0][1].product_id  # they are one lane's
        values = [record.record.message.value for record, _ in placements]
        await retry_until_ok("postgres", UNAVAILABLE, self._pool.execute, SQL.park_orders, product, values)
        _placed.labels("parked").inc(len(placements))
        log.warning("parked until the books are in force", product=product, orders=len(placements))

    async def _reserve_again(self, record: Record, event: OrderPlaced) -> bool:
        """False where the product's books are not in force."""
        product, order_id = ProductId(event.product_id), OrderId(event.order_id)
        match await retry_until_ok("redis", REDIS_ERRORS, self._reserve, event):
            case Held(value=value):
                await self._publisher.publish(ORDERS, event.order_id, value)  # comes back here under the new epoch
            case None:
                await self._advance_known([event])
            case Known(order_id=other) if other != order_id:
                await self._fail(
                    event, f"its key was used again for order {other} after the books were lost", key_lost=True
                )
            case Known() if order_id in await retry_until_ok(
                "redis", REDIS_ERRORS, self._inventory.entries, product, [order_id]
            ):
                await self._place([(record, event)], vouched=True)  # a rebuild has taken it in since
            case Known():
                await self._fail(event, "its reservation was lost with the books", key_lost=False)
            case Refused(reason="unverified"):
                return False
            case Refused(reason=reason):
                await self._fail(event, f"its reservation was lost with the books, and then: {reason}", key_lost=True)
        return True

    async def _reserve(self, event: OrderPlaced) -> Held | Known | Refused | None:
        """None where the order has its row by now: read late, it may have ended, and Redis have forgotten it and its key."""
        if await retry_until_ok("postgres", UNAVAILABLE, read_rows, self._pool, [OrderId(event.order_id)]):
            return None
        return await self._inventory.reserve(
            Reservation(
                order_id=OrderId(event.order_id),
                user_id=UserId(event.user_id),
                product_id=ProductId(event.product_id),
                quantity=event.quantity,
                unit_price_cents=event.unit_price_cents,
                currency=event.currency,
                hashed_key=None if event.key_hash is UNSET else event.key_hash,
                redriven_from=None if event.redriven_from is UNSET else OrderId(event.redriven_from),
                accepted_at_ms=event.placed_at_ms,
            )
        )

    async def _bury_and_fail(self, placement: Placement, reason: str, *, vouched: bool) -> None:
        """What can never be placed ends all the same, uncharged, and gives its units back - if Postgres takes that row."""
        record, event = placement
        await bury(record, self._dead_letters, reason)
        try:
            await self._record_failed(event, reason, key_lost=False)
        except RECORDS_FAULT as error:
            log.error("neither placed nor failed: its units stay held", order=event.order_id, error=str(error))
        else:
            await self._go_on_with([placement], vouched=vouched)

    async def _fail(self, event: OrderPlaced, reason: str, *, key_lost: bool) -> None:
        """Uncharged and without units; the row first, so that a second reading of the record announces it again.

        `key_lost`: Redis does not answer its Idempotency-Key with this order; another has it, or may get it.
        """
        await self._record_failed(event, reason, key_lost=key_lost)
        # The row may be another's: a new owner of the partition has read the same record, and found room for it.
        await self._advance_known([event])

    async def _record_failed(self, event: OrderPlaced, reason: str, *, key_lost: bool) -> None:
        await retry_until_ok(
            "postgres",
            UNAVAILABLE,
            self._pool.execute,
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


app = stage_app(ORDER_STAGE_GROUP, ORDERS, OrderStage)
