"""Checks due entries, and pushes stranded orders with the event or the settlement for which they wait.

Everything published here is a copy of an event that should be on the log already, so a crash half-way does no harm.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import assert_never

import asyncpg
from cachetools import LRUCache

from consumers.relay.decisions import (
    Allowance,
    Decision,
    OrderSnapshot,
    PushState,
    decide,
    record_check,
    record_push,
    rotated,
)
from infra.kafka.publisher import Publisher
from infra.kafka.watermarks import Watermarks
from infra.logs import get_logger
from infra.metrics.definitions import RELAY_PUSHES
from infra.redis.client import clock_ms
from sale.books.due import DueList
from sale.books.entry import HeldEntry
from sale.books.inventory import Inventory
from sale.orders import OrderRow, read_rows
from sale.settlement import SettlementDesk
from schemas.clock import now_ms, since_boot_ms
from schemas.codec import encode
from schemas.events import PaymentRequested
from schemas.ids import OrderId, ProductId
from schemas.order_state import Entry, Next, advance
from schemas.topics import CONSUMED_BY, ORDERS, PAYMENTS

PUSHES_PER_S = 1_000
CHECKS_PER_ROUND = 500
REMEMBERED = 200_000  # orders whose pushes are remembered; the oldest are forgotten, and looked at as if new
ANNOUNCE_TIMEOUT_S = 5.0  # Redis or Kafka is down: the next round tries again

_pushes = RELAY_PUSHES.make()
log = get_logger()


@dataclass(frozen=True, slots=True)
class _Order:
    entry: HeldEntry
    row: OrderRow | None
    decision: Decision


@dataclass(slots=True)
class Pusher:
    """Checks due entries, oldest first, product by product. Each product with due entries gets its share of the pushes."""

    inventory: Inventory
    pool: asyncpg.Pool
    publisher: Publisher
    desk: SettlementDesk
    watermarks: Watermarks
    allowance: Allowance = field(default_factory=lambda: Allowance(PUSHES_PER_S))
    _memories: LRUCache[OrderId, PushState] = field(default_factory=lambda: LRUCache(REMEMBERED))
    _unacknowledged: set[OrderId] = field(default_factory=set)
    _rounds: int = 0

    @property
    def due_list(self) -> DueList:
        return DueList(self.inventory.redis)

    async def run_once(self, epochs: Mapping[ProductId, int]) -> int:
        """Check each product whose books are in force (`epochs`) once. Returns the number of checked orders."""
        redis_ahead_ms = await clock_ms(self.inventory.redis) - since_boot_ms()
        products = await self.due_list.products_with_due(list(epochs), since_boot_ms() + redis_ahead_ms)
        if not products:
            return 0  # reading watermarks from Kafka costs more than this check
        # Read before everything else: an order that is older than they are and has not moved is stranded.
        marks = {group: await self.watermarks.watermark(group) for group in CONSUMED_BY}
        if all(mark is None for mark in marks.values()):
            return 0
        self._rounds += 1
        seen = 0
        self.allowance.refill(since_boot_ms())
        for product, to_come in zip(rotated(products, self._rounds), range(len(products), 0, -1), strict=True):
            allowed = self.allowance.share(to_come)
            seen += await self._push_product(product, epochs[product], marks, redis_ahead_ms, allowed)
        return seen

    async def _push_product(
        self, product: ProductId, epoch: int, marks: Mapping[str, int | None], redis_ahead_ms: int, allowed: int
    ) -> int:
        now = since_boot_ms()
        ids = await self.due_list.due(product, now + redis_ahead_ms, CHECKS_PER_ROUND) if allowed else []
        if not ids:
            return 0
        try:
            entries = await self.inventory.entries(product, ids)
        except (ValueError, KeyError) as error:  # no script wrote this line; the rebuild leaves it out
            log.error("unreadable entry: closing", product=product, error=str(error))
            await self.inventory.close(product)
            return 0
        rows = await read_rows(self.pool, list(entries))
        await self._forget(product, [id_ for id_ in ids if id_ not in entries])
        orders = [
            self._judge(entry, rows.get(id_), epoch, marks, min(now, entry.at_ms - redis_ahead_ms))
            for id_, entry in entries.items()
        ]
        to_push = [order for order in orders if order.decision.push][:allowed]
        await self._postpone(product, orders, {order.entry.order_id for order in to_push}, now + redis_ahead_ms)
        self.allowance.spend(len(to_push))
        await self._push(product, to_push)
        return len(ids)

    async def _forget(self, product: ProductId, ids: Sequence[OrderId]) -> None:
        """Remove due orders without an entry: announced since they were read, or leftovers."""
        for order_id in ids:
            self._memories.pop(order_id, None)
        await self.due_list.forget(product, ids)

    def _judge(
        self, entry: HeldEntry, row: OrderRow | None, epoch: int, marks: Mapping[str, int | None], entry_at_ms: int
    ) -> _Order:
        now = since_boot_ms()
        standing = OrderSnapshot(
            entry=entry.state,
            entry_at_ms=entry_at_ms,
            row=row.status if row else None,
            row_updated_ms=now - max(0, int(row.unchanged_s() * 1000)) if row else 0,
            current_epoch=entry.epoch == epoch,
        )
        memory = self._memory(entry.order_id)
        decision = decide(standing, memory, marks)
        record_check(memory, decision.step, now)
        if decision.push and entry.order_id in self._unacknowledged:
            decision = Decision(decision.step, push=False, next_check_ms=decision.next_check_ms)
        return _Order(entry, row, decision)

    def _memory(self, order_id: OrderId) -> PushState:
        return self._memories.setdefault(order_id, PushState())

    async def _postpone(self, product: ProductId, orders: Sequence[_Order], pushing: set[OrderId], now: int) -> None:
        """Orders that exceed the allowance stay due, and are the oldest in the next round."""
        looks = {
            order.entry.order_id: now + order.decision.next_check_ms
            for order in orders
            if order.entry.order_id in pushing or not order.decision.push
        }
        await self.due_list.postpone(product, looks)

    async def _push(self, product: ProductId, orders: Sequence[_Order]) -> None:
        ended: list[OrderRow] = []
        suspects: list[OrderId] = []
        for order in orders:
            record_push(self._memory(order.entry.order_id), since_boot_ms())
            _pushes.labels(order.decision.step.name.lower()).inc()
            match order.decision.step:
                case Next.PLACE:
                    self._publish(order.entry.order_id, place=order.entry.placed_value)
                case Next.PAY:
                    request = PaymentRequested(
                        order_id=order.entry.order_id, product_id=product, requested_at_ms=now_ms()
                    )
                    self._publish(order.entry.order_id, pay=encode(request))
                case Next.SETTLE | Next.ANNOUNCE:
                    assert order.row is not None  # it has ended
                    ended.append(order.row)
                case Next.REBUILD:
                    suspects.append(order.entry.order_id)
                case Next.RESERVE_AGAIN | Next.RECONCILE | Next.DONE:
                    raise AssertionError(f"the relay does not push {order.decision.step}")
                case never:
                    assert_never(never)
        if orders:
            log.info(
                "pushed stranded orders",
                product=product,
                orders=len(orders),
                order_id=orders[0].entry.order_id,  # one of them
                step=orders[0].decision.step.name,
            )
        await self._close_if_wrong(product, suspects)
        await self._announce(ended)

    def _publish(self, order_id: OrderId, *, place: bytes | None = None, pay: bytes | None = None) -> None:
        topic, value = (ORDERS, place) if place is not None else (PAYMENTS, pay)
        assert value is not None
        self._unacknowledged.add(order_id)
        sent = self.publisher.publish(topic, order_id, value)
        sent.add_done_callback(lambda future: self._acknowledged(order_id, future))

    def _acknowledged(self, order_id: OrderId, sent: "asyncio.Future[None]") -> None:
        self._unacknowledged.discard(order_id)
        if sent.cancelled() or sent.exception() is not None:
            return  # the publisher stopped, or the record cannot be written: the next check handles it
        if order_id in self._memories:
            self._memories[order_id].last_push_ms = since_boot_ms()  # the record may have waited long for the broker

    async def _announce(self, rows: Sequence[OrderRow]) -> None:
        if not rows:
            return
        try:
            await asyncio.wait_for(self.desk.announce(rows), ANNOUNCE_TIMEOUT_S)
        except TimeoutError:
            log.warning("could not announce in time", orders=len(rows))

    async def _close_if_wrong(self, product: ProductId, ids: Sequence[OrderId]) -> None:
        """Read again before closing: that stops the sale until the books are rebuilt."""
        if not ids:
            return
        entries = await self.inventory.entries(product, ids)
        rows = await read_rows(self.pool, list(entries))
        for order_id, entry in entries.items():
            row = rows.get(order_id)
            if advance(row.status if row else None, entry.state) is Next.REBUILD:
                log.error(
                    "books disagree with postgres: closing",
                    product=product,
                    order_id=order_id,
                    entry=entry.state,
                    row=row.status if row else Entry.NONE,
                )
                await self.inventory.close(product)
                return
