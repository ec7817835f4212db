"""The order stage: topic `orders` in; rows in Postgres, then topics `payments` and `order-status` out. At least once.

`faust -A streams.order_stage worker`, or `thrones stage order`.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from infra import tracing
from infra.pace import Pace
from infra.tracing import Traced
from schemas.events import OrderPlaced, StockOpened
from schemas.topics import ORDER_STAGE_GROUP, ORDERS
from streams.acks import InWork
from streams.app import (
    Acks,
    Record,
    RecordsInWork,
    Resources,
    count_taken,
    dead_letter,
    decode_or_dead_letter,
    headers_of,
    stage_app,
)
from streams.backlog import QueueCount
from streams.inbox import ARRIVAL_S, BUSY_PER_S, Inbox
from streams.lanes import Lanes, by_product
from streams.placing import Placement, Placing
from streams.redelivery import Redelivery
from streams.replaced_books import ReplacedBooks

MAX_BATCH = 500  # rows per statement: about 11 ms in Postgres


class OrderStage:
    """One batch at a time: the records that arrived while one was written form the next.

    New orders need only Postgres and the log. Work that needs Redis, which may be down, goes to the lane of its product.
    """

    def __init__(self, resources: Resources, acks: Acks) -> None:
        self._acks = acks
        self._dead_letters = resources.dead_letters
        self._placing = Placing(resources)
        self._redelivery = Redelivery(resources, self._placing)
        self._replaced_books = ReplacedBooks(resources, self._placing, self._redelivery)
        self._inbox: Inbox[Record] = Inbox(Pace(BUSY_PER_S, ARRIVAL_S, resources.part))
        self._known: Lanes[Placement] = Lanes(self._finish_known, MAX_BATCH)
        self._stale: Lanes[Placement] = Lanes(self._finish_stale, MAX_BATCH)
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False

    def take(self, record: Record) -> None:
        self._inbox.put(record)

    def queues(self) -> tuple[QueueCount, ...]:
        return (QueueCount(self._acks.open, self._acks.finished),)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as self._group:
            while not self._draining:
                batch = await self._inbox.take(MAX_BATCH)
                self._idle.clear()
                count_taken(batch)
                with InWork(self._acks, batch) as mine:
                    await self._process(mine)
                self._idle.set()

    async def drain(self) -> None:
        self._draining = True
        await self._idle.wait()

    async def _process(self, mine: RecordsInWork) -> None:
        placements = await self._read(mine.records)
        with _traced(placements) as traced:
            placed = await self._placing.place(placements, vouched=False, traced=traced)
            await self._hand_on(mine, placed.known, self._known)
            await self._hand_on(mine, placed.stale, self._stale)

    async def _read(self, records: Sequence[Record]) -> list[Placement]:
        placements: list[Placement] = []
        for record in records:
            event = await decode_or_dead_letter(record, self._dead_letters)
            if isinstance(event, OrderPlaced):
                placements.append(Placement(record, event))
            elif event is not None and not isinstance(event, StockOpened):
                await dead_letter(
                    record, self._dead_letters, f"a {type(event).__name__} does not belong on {ORDERS.name}"
                )
        return placements

    async def _hand_on(self, mine: RecordsInWork, placements: Sequence[Placement], lanes: Lanes[Placement]) -> None:
        mine.hand_on(record for record, _ in placements)
        await lanes.put(self._group, by_product(placements, lambda placement: placement.event.product_id))

    async def _finish_known(self, placements: list[Placement]) -> None:
        with InWork(self._acks, [record for record, _ in placements]):
            await self._redelivery.finish([event for _, event in placements])

    async def _finish_stale(self, placements: list[Placement]) -> None:
        with InWork(self._acks, [record for record, _ in placements]):
            await self._replaced_books.finish(placements)


@contextmanager
def _traced(placements: Sequence[Placement]) -> Iterator[Traced | None]:
    """The traced orders of a batch; their spans end with it."""
    if tracing.on is None:
        yield None
        return
    spans = {}
    for record, event in placements:
        if (span := tracing.on.follow("store order", headers_of(record))) is not None:
            span.set_attributes(order_id=event.order_id)
            spans[event.order_id] = span
    try:
        yield spans
    finally:
        for span in spans.values():
            span.end()


app = stage_app(ORDER_STAGE_GROUP, ORDERS, OrderStage)
