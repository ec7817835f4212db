"""Sends the records of dead letters back to their source topics; a failed order becomes a new order.

A letter is marked as redriven only after the broker has acknowledged its record. A redrive that dies half-way can be
repeated: at most it sends the same record again, which every reader drops. The new order is reserved by the ordinary
script under a key made of the failed order's id, so a repetition finds that reservation and never takes units twice.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg

from consumers.dead_letters.letters import DlqError, Letter
from infra.kafka.offsets import Offsets
from infra.kafka.publisher import Publisher
from infra.settings import Settings
from sale.books.inventory import Held, Inventory, Known, Refused, Reservation
from sale.books.key_record import key_hash
from sale.orders import read_rows
from sale.tables.queries import SQL
from schemas.events import OrderPlaced
from schemas.ids import OrderId, ProductId, UserId, new_order_id, parse_order_id
from schemas.order_state import Entry, Status
from schemas.topics import ALL, DEAD_LETTERS, ORDERS, Topic

REDRIVE_LOCK = 0x7412_0004  # one redrive at a time
ACKNOWLEDGED_WITHIN_S = 30.0
SOURCES = {topic.name: topic for topic in ALL if topic is not DEAD_LETTERS}


@dataclass(frozen=True, slots=True)
class Fate:
    """The result, or in a dry run the expected result, of one letter. `done`: republished, new_order or refused."""

    letter: str
    done: str
    topic: str
    detail: str
    order_id: str | None = None
    new_order_id: str | None = None


@dataclass(frozen=True, slots=True)
class _Plan:
    """Exactly one of three: the topic to republish to, the failed order to replace, or the reason for neither."""

    topic: Topic | None = None
    failed: OrderPlaced | None = None
    refused: str = ""


class Redrive:
    """Redrives letters one by one, in order."""

    def __init__(
        self, settings: Settings, pool: asyncpg.Pool, inventory: Inventory, publisher: Publisher, who: str
    ) -> None:
        self._settings, self._pool, self._inventory, self._publisher = settings, pool, inventory, publisher
        self._who = who
        self._ends: dict[int, int] = {}  # of the dead letters before the redrive: later letters may have come back

    async def run(self, letters: Sequence[Letter], *, rate: float, dry_run: bool) -> AsyncIterator[Fate]:
        """Redrives at most `rate` letters per second. Raises DlqError if another redrive runs, or what the stores raise."""
        if dry_run:
            for letter in letters:
                yield _planned_fate(letter, await self._plan(letter))
            return
        loop = asyncio.get_running_loop()
        async with self._alone():
            self._ends = await self._ends_of_letters()
            next_at = loop.time()
            for letter in letters:
                await asyncio.sleep(max(0.0, next_at - loop.time()))
                next_at = max(next_at, loop.time()) + 1 / rate
                yield await self._redrive(letter)

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        connection = await asyncpg.connect(self._settings.postgres_dsn, timeout=5.0)
        try:
            if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", REDRIVE_LOCK):
                raise DlqError("another redrive is under way")
            yield
        finally:
            await connection.close(timeout=5.0)

    async def _ends_of_letters(self) -> dict[int, int]:
        offsets = Offsets(self._settings)
        try:
            return await offsets.ends(DEAD_LETTERS)
        finally:
            await offsets.close()

    async def _plan(self, letter: Letter) -> _Plan:
        topic = SOURCES.get(letter.topic)
        if topic is None:
            return _Plan(refused=f"its source topic {letter.topic!r} is unknown")
        if letter.cut:
            whole = f"{letter.topic} partition {letter.source_partition} offset {letter.source_offset}"
            return _Plan(refused=f"the letter holds only its beginning; the whole record is at {whole}")
        event = letter.event
        if topic is ORDERS and isinstance(event, OrderPlaced) and parse_order_id(event.order_id):
            row = (await read_rows(self._pool, [OrderId(event.order_id)])).get(OrderId(event.order_id))
            if row is not None and row.status is Status.FAILED:
                return _Plan(failed=event)
        return _Plan(topic=topic)

    async def _redrive(self, letter: Letter) -> Fate:
        plan = await self._plan(letter)
        if plan.topic is not None:
            await self._acknowledged(plan.topic, letter.key, letter.value)
            await self._mark(letter, None, None)
        elif plan.failed is not None:
            return await self._replace_order(letter, plan.failed)
        return _planned_fate(letter, plan)

    async def _replace_order(self, letter: Letter, failed: OrderPlaced) -> Fate:
        earlier = await self._pool.fetchval(SQL.redriven_order, failed.order_id)
        new_id = OrderId(earlier) if earlier else new_order_id()
        detail = f"order {failed.order_id} was replaced before"
        if not earlier:
            detail = f"in place of the failed order {failed.order_id}"
            match await self._inventory.reserve(_new_reservation(failed, new_id)):
                case Held(value=value):
                    await self._acknowledged(ORDERS, new_id.encode(), value)
                case Known(order_id=known):
                    new_id = known
                    await self._finish_earlier(ProductId(failed.product_id), new_id)
                case Refused(reason=reason):
                    return Fate(letter.name, "refused", letter.topic, f"no units: {reason}", failed.order_id)
        await self._mark(letter, failed.order_id, new_id)
        return Fate(letter.name, "new_order", letter.topic, detail, failed.order_id, new_id)

    async def _finish_earlier(self, product: ProductId, new_id: OrderId) -> None:
        """An earlier redrive died after its reservation, and its record may be missing on the log. A second copy is harmless."""
        entry = (await self._inventory.entries(product, [new_id])).get(new_id)
        if entry is not None and entry.state is Entry.HELD:
            await self._acknowledged(ORDERS, new_id.encode(), entry.placed_value)

    async def _acknowledged(self, topic: Topic, key: bytes, value: bytes) -> None:
        sent = self._publisher.publish(topic, key, value)
        await asyncio.wait_for(asyncio.shield(sent), ACKNOWLEDGED_WITHIN_S)

    async def _mark(self, letter: Letter, order_id: str | None, new_id: str | None) -> None:
        ended_at = self._ends.get(letter.partition)
        await self._pool.execute(SQL.mark_redriven, *letter.place, self._who, order_id, new_id, ended_at)


def _new_reservation(failed: OrderPlaced, new_id: OrderId) -> Reservation:
    """A reservation of its own; its key starts with NUL, which no client can send."""
    return Reservation(
        order_id=new_id,
        user_id=UserId(failed.user_id),
        product_id=ProductId(failed.product_id),
        quantity=failed.quantity,
        unit_price_cents=failed.unit_price_cents,
        currency=failed.currency,
        hashed_key=key_hash(f"\0redriven from {failed.order_id}"),
        redriven_from=OrderId(failed.order_id),
    )


def _planned_fate(letter: Letter, plan: _Plan) -> Fate:
    if plan.refused:
        return Fate(letter.name, "refused", letter.topic, plan.refused)
    if plan.failed is not None:
        detail = f"in place of the failed order {plan.failed.order_id}"
        return Fate(letter.name, "new_order", letter.topic, detail, plan.failed.order_id)
    event = letter.event
    order_id = getattr(event, "order_id", None)
    detail = "its original bytes" if event is not None else "its original bytes, which today's code cannot read either"
    return Fate(letter.name, "republished", letter.topic, detail, order_id)


__all__ = ["Fate", "Redrive"]
