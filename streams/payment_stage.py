"""The payment stage: topic `payments` in; charges, then settled orders out. Thousands in flight, settled in batches.

`faust -A streams.payment_stage worker`, or `thrones stage payment`.
"""

import asyncio
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import assert_never

from infra import tracing
from infra.pace import Pace
from infra.postgres.pool import UNAVAILABLE
from infra.waits import retry_until_ok
from sale.orders import OrderRow, read_rows, status_event
from sale.payments.breaker import CircuitBreaker
from sale.payments.charging import Charge, Charged, Unsettled, charge_until_definite
from sale.payments.provider import Captured, Declined, HttpPaymentProvider, PaymentProvider
from sale.settlement import Verdict
from schemas.clock import now_ms
from schemas.codec import encode
from schemas.events import PaymentRequested, Step
from schemas.ids import OrderId
from schemas.order_state import TERMINAL, Status
from schemas.topics import ORDER_STATUS, PAYMENT_STAGE_GROUP, PAYMENTS
from streams.app import Acks, Record, Resources, count_taken, dead_letter, decode_or_dead_letter, headers_of, stage_app
from streams.backlog import QueueCount
from streams.inbox import ARRIVAL_S, BUSY_PER_S, GATHER_S, Inbox
from streams.lanes import Lanes, by_product

MAX_BATCH = 500


@dataclass(frozen=True, slots=True)
class Finished:
    """A verdict to settle, or, without one, a row that is already terminal; with the records that it answers."""

    records: list[Record]
    verdict: Verdict | None = None
    row: OrderRow | None = None
    trace: tracing.Span | None = None  # begins when the charge has ended


End = tuple[OrderRow, Finished]


class PaymentStage:
    """Three loops: gather (one query for all new records), charge (one task per order), settle (one batch of results).

    Rows are written in one batch. The following work in Redis and on the log goes to the lane of each product.
    """

    def __init__(
        self, resources: Resources, acks: Acks, provider: AbstractAsyncContextManager[PaymentProvider] | None = None
    ) -> None:
        self._pool = resources.pool
        self._publisher = resources.publisher
        self._desk = resources.desk
        self._dead_letters = resources.dead_letters
        self._connect = provider or HttpPaymentProvider(resources.settings.payment_gateway_url)
        self._breaker = CircuitBreaker()
        self._acks = acks
        self._arrived: Inbox[Record] = Inbox(Pace(BUSY_PER_S, ARRIVAL_S, resources.part))
        self._finished: Inbox[Finished] = Inbox(Pace(BUSY_PER_S, GATHER_S, resources.part))
        self._lanes: Lanes[End] = Lanes(self._conclude, MAX_BATCH)
        self._charging: dict[OrderId, list[Record]] = {}
        self._slots = asyncio.Semaphore(resources.settings.worker_concurrency)
        self._waiting, self._dispatched = 0, 0  # records before their charge, and beyond that so far
        self._unsettled, self._settled = 0, 0  # records after it
        self._begun = 0  # records gathered but not yet acknowledged
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False

    def take(self, record: Record) -> None:
        self._waiting += 1
        self._arrived.put(record)

    def queues(self) -> tuple[QueueCount, ...]:
        """Before the charge and after it; in between an order waits for the provider."""
        return QueueCount(self._waiting, self._dispatched), QueueCount(self._unsettled, self._settled)

    async def run(self) -> None:
        async with self._connect as provider, asyncio.TaskGroup() as group:
            group.create_task(self._gather(provider, group))
            group.create_task(self._settle(group))

    async def drain(self) -> None:
        self._draining = True
        await self._idle.wait()

    async def _gather(self, provider: PaymentProvider, group: asyncio.TaskGroup) -> None:
        """Read status and amount of all new records in one query: only the row says what to charge."""
        while not self._draining:
            batch = await self._arrived.take(MAX_BATCH)
            self._begin(len(batch))
            count_taken(batch)
            requests: dict[OrderId, list[Record]] = {}
            for record in batch:
                event = await decode_or_dead_letter(record, self._dead_letters)
                if isinstance(event, PaymentRequested):
                    requests.setdefault(OrderId(event.order_id), []).append(record)
                    continue
                if event is not None:
                    await dead_letter(
                        record, self._dead_letters, f"a {type(event).__name__} does not belong on {PAYMENTS.name}"
                    )
                self._count_dispatched([record])
                self._done([record])
            rows = await retry_until_ok("postgres", UNAVAILABLE, read_rows, self._pool, list(requests))
            for order_id, records in requests.items():
                await self._dispatch(order_id, rows.get(order_id), records, provider, group)
                self._count_dispatched(records)

    async def _dispatch(
        self,
        order_id: OrderId,
        row: OrderRow | None,
        records: list[Record],
        provider: PaymentProvider,
        group: asyncio.TaskGroup,
    ) -> None:
        if row is None:
            for record in records:
                await dead_letter(record, self._dead_letters, "no such order in postgres")
            self._done(records)
        elif row.status in TERMINAL:
            self._finish(Finished(records, row=row))
        elif row.status is Status.NEEDS_RECONCILIATION:
            self._done(records)  # left to the reconciler
        elif row.id in self._charging:
            self._charging[row.id] += records  # a copy of a request whose charge is in progress
        else:
            await self._slots.acquire()
            self._charging[row.id] = records
            group.create_task(self._charge(row, provider))

    async def _charge(self, row: OrderRow, provider: PaymentProvider) -> None:
        span = None if tracing.on is None else tracing.on.follow("charge", headers_of(self._charging[row.id][0]))
        try:
            charging = charge_until_definite(
                provider, self._breaker, Charge.of(row), on_slow=lambda: self._report_slow(row)
            )
            charged = await (charging if span is None else span.around(charging))
        finally:
            self._slots.release()
            records = self._charging.pop(row.id)
        settling = None if span is None else span.child("settle")
        self._finish(Finished(records, verdict_of(row.id, charged), trace=settling))

    def _report_slow(self, row: OrderRow) -> None:
        at_ms = now_ms()
        step = Step(Status.PROCESSING_PAYMENT, at_ms)
        event = status_event(row, status=Status.PROCESSING_PAYMENT, steps=(step,), at_ms=at_ms)
        self._publisher.publish(ORDER_STATUS, row.id, encode(event))

    async def _settle(self, group: asyncio.TaskGroup) -> None:
        while True:
            finished = await self._finished.take(MAX_BATCH)
            unwritten = one_each(finished)
            verdicts = [item.verdict for item in unwritten.values() if item.verdict is not None]
            recorded = await self._desk.record(
                verdicts, None if tracing.on is None else traced_of(finished), partial(self._dead_letter, unwritten)
            )
            ends = [(row, unwritten.pop(row.id)) for row in recorded]
            ends += [(item.row, item) for item in finished if item.row is not None]
            for item in unwritten.values():  # their rows do not exist
                self._count_settled(item.records)
            await self._lanes.put(group, by_product(ends, lambda end: end[0].product_id))

    async def _dead_letter(self, unwritten: dict[OrderId, Finished], verdict: Verdict, reason: str) -> None:
        """Send the requests whose answer Postgres can never store; they are acknowledged with the others."""
        for record in unwritten[verdict.order_id].records:
            await dead_letter(record, self._dead_letters, reason)

    async def _conclude(self, ends: list[End]) -> None:
        finished = [item for _, item in ends]
        settled = [row for row, item in ends if item.verdict is not None]
        await self._desk.conclude(settled, None if tracing.on is None else traced_of(finished))
        await self._desk.announce([row for row, item in ends if item.verdict is None])
        self._count_settled([record for item in finished for record in item.records])
        for item in finished:
            if item.trace is not None:
                item.trace.end()

    def _count_dispatched(self, records: list[Record]) -> None:
        self._waiting -= len(records)
        self._dispatched += len(records)

    def _finish(self, item: Finished) -> None:
        self._unsettled += len(item.records)
        self._finished.put(item)

    def _count_settled(self, records: list[Record]) -> None:
        self._unsettled -= len(records)
        self._settled += len(records)
        self._done(records)

    def _begin(self, count: int) -> None:
        self._begun += count
        self._idle.clear()

    def _done(self, records: list[Record]) -> None:
        self._acks.finish(records)
        self._begun -= len(records)
        if not self._begun:
            self._idle.set()


def traced_of(finished: list[Finished]) -> tracing.Traced:
    return {item.verdict.order_id: item.trace for item in finished if item.verdict and item.trace}


def one_each(finished: Iterable[Finished]) -> dict[OrderId, Finished]:
    """One verdict per order, with the records of all its copies.

    A copy that is read after the charge has ended, but before its row is written, is charged again with the same key.
    """
    decided: dict[OrderId, Finished] = {}
    for item in finished:
        if item.verdict is None:
            continue
        known = decided.get(item.verdict.order_id)
        if known is None or known.verdict is None:
            decided[item.verdict.order_id] = item
            continue
        definite = known if known.verdict.status is not Status.NEEDS_RECONCILIATION else item
        decided[item.verdict.order_id] = replace(definite, records=known.records + item.records)
    return decided


def verdict_of(order_id: OrderId, charged: Charged) -> Verdict:
    """How an answer of the provider ends an order. An unknown outcome does not end it."""
    times = (charged.started_at_ms, charged.answered_at_ms)
    match charged.outcome:
        case Captured(charge_id=charge_id):
            return Verdict(order_id, Status.CONFIRMED, None, charge_id, *times)
        case Declined(reason=reason):
            return Verdict(order_id, Status.PAYMENT_FAILED, reason, None, *times)
        case Unsettled(reason=reason):
            return Verdict(order_id, Status.NEEDS_RECONCILIATION, reason, None, *times)
        case never:
            assert_never(never)


app = stage_app(PAYMENT_STAGE_GROUP, PAYMENTS, PaymentStage)
