"""The new books of one product, written beside those in force: entries, due times, counts per user, key records, read models.

open.lua puts them in force at once. Only key records and read models are visible before, because they are true already.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

import asyncpg
import msgspec
from msgspec import UNSET

from infra.redis.client import Redis, clock_ms
from sale.books import key_record, keys
from sale.books.due import MAX_CHECK_DELAY_MS
from sale.books.entry import HeldEntry, PlacedHead, placed_head
from sale.books.inventory import FIRST_CHECK_MS, KEY_LIFETIME_MS
from sale.books.read_model import steps_text
from sale.books.scripts import DIGESTS, SCRIPTS
from schemas.clock import to_ms
from schemas.ids import OrderId, ProductId, UserId
from schemas.order_state import RANK, TERMINAL, Entry, Status

CHECKS_PER_MS = 1  # spreads the relay's checks of the entries: it pushes at most 1,000 orders/s anyway
WRITES_AT_ONCE = 2  # while Redis writes one chunk the next is read; several products may share one pool
OLD_ATTEMPTS = 64  # the prepared keys of this many earlier epochs are removed

_head_decoder = msgspec.json.Decoder(PlacedHead)


def entry_of_row(row: asyncpg.Record) -> HeldEntry:
    """The held entry for a row.

    An ended order gets quantity 0: its units are already sold or on sale, and released ones may even be sold again. Its
    settlement uses a version and moves no units; the entry is only for the announcement.
    """
    head = PlacedHead(
        order_id=row["id"],
        product_id=row["product_id"],
        user_id=row["user_id"],
        quantity=row["quantity"],
        unit_price_cents=row["unit_price_cents"],
        currency=row["currency"],
        key_hash=row["key_hash"] or UNSET,
    )
    return HeldEntry(
        order_id=OrderId(row["id"]),
        state=Entry.HELD,
        epoch=row["epoch"],
        version=row["version"],
        available=row["available"],
        quantity=0 if row["status"] in TERMINAL else row["quantity"],
        user_id=UserId(row["user_id"]),
        at_ms=row["placed_at_ms"],
        placed_head=placed_head(head),
    )


def head_of(entry: HeldEntry) -> PlacedHead:
    """Raises msgspec.DecodeError for a head that no gateway wrote."""
    return _head_decoder.decode(entry.placed_head + b"}")


ReadModelArguments = (
    tuple[str, int, tuple[str, ...]] | tuple[str, int, tuple[str, ...], tuple[str, int]]
)  # see prepare.lua


@dataclass(slots=True)
class _Chunk:
    """One call of prepare.lua."""

    orders: list[tuple[str, str, int]] = field(default_factory=list)  # text, because cmsgpack has no binary type
    users: list[tuple[int, int]] = field(default_factory=list)
    key_records: list[tuple[str, str, int]] = field(default_factory=list)
    read_models: list[ReadModelArguments] = field(default_factory=list)

    def encode(self) -> bytes:
        return msgspec.msgpack.encode((self.orders, self.users, self.key_records, self.read_models))


class PreparedBooks:
    """The books of `epoch` in preparation. Counts what it gets; the caller adds no order twice."""

    def __init__(self, redis: Redis, product: ProductId, epoch: int) -> None:
        self._redis = redis
        self._product = product
        self._epoch = epoch
        self._in_force = (keys.held(product), keys.due(product), keys.buyers(product))
        self._prepared = tuple(keys.prepared(key, epoch) for key in self._in_force)
        self.now_ms = 0  # by Redis' clock, which dated the reservations too
        self.opened_from = 0  # the end of the log before their opening is published
        self._under_way: list[asyncio.Task[None]] = []
        self.held_units = 0
        self.held_orders = 0  # orders that hold units
        self.unannounced_units = 0  # of confirmed orders that have an entry: sold, but not announced on the log
        self.announced_again = 0  # ended orders that have an entry for their announcement
        self.entries = 0
        self._ended = 0  # of them

    @property
    def script_keys(self) -> tuple[str, ...]:
        """open.lua's KEYS."""
        return (keys.stock(self._product), *self._in_force, *self._prepared)

    async def begin(self) -> None:
        """Close the product, load the scripts, and remove the leftovers of earlier attempts."""
        self.now_ms = await clock_ms(self._redis)
        await self._redis.eval(SCRIPTS["close"], 1, keys.stock(self._product), str(self._epoch))
        await self._redis.script_load(SCRIPTS["prepare"])
        epochs = range(max(1, self._epoch - OLD_ATTEMPTS), self._epoch + 1)
        await self._redis.unlink(*(keys.prepared(key, epoch) for epoch in epochs for key in self._in_force))

    async def add_rows(self, rows: Sequence[asyncpg.Record]) -> None:
        """Add orders from Postgres. Those that are not terminal get a read model, unless Redis has a newer one."""
        chunk = _Chunk()
        self._add(chunk, [entry_of_row(row) for row in rows])
        for row in rows:
            if row["status"] == Status.CONFIRMED:
                self.unannounced_units += row["quantity"]
            self.announced_again += row["status"] in TERMINAL
            if row["status"] not in TERMINAL:
                chunk.read_models.append(_read_model_of_row(row))
        await self._write(chunk)

    async def add_unrowed(self, entries: Sequence[HeldEntry]) -> None:
        """Add orders that only the log or Redis has, with their users' counts, key records and read models."""
        chunk = _Chunk()
        self._add(chunk, entries)
        for entry in entries:
            head = head_of(entry)
            chunk.users.append((entry.user_id, entry.quantity))
            chunk.read_models.append(_read_model_of_entry(entry, head))
            if head.key_hash is not UNSET:
                self._record_key(chunk, entry.order_id, entry.user_id, head.key_hash, entry.at_ms, head.quantity)
        await self._write(chunk)

    async def add_users(self, rows: Sequence[asyncpg.Record]) -> None:
        await self._write(_Chunk(users=[(row["user_id"], row["units"]) for row in rows]))

    async def add_keys(self, rows: Sequence[asyncpg.Record]) -> None:
        chunk = _Chunk()
        for row in rows:
            self._record_key(chunk, row["id"], row["user_id"], row["key_hash"], row["placed_at_ms"], row["quantity"])
        await self._write(chunk)

    async def written(self) -> None:
        """Wait until everything is in Redis. Raises the error of a failed write."""
        while self._under_way:
            await self._one_written()

    async def abandon(self) -> None:
        """Wait until no write of these books is in progress."""
        for write in self._under_way:
            write.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _write(self, chunk: _Chunk) -> None:
        while len(self._under_way) >= WRITES_AT_ONCE:
            await self._one_written()
        self._under_way.append(asyncio.create_task(self._send(chunk.encode())))

    async def _one_written(self) -> None:
        await asyncio.wait(self._under_way, return_when=asyncio.FIRST_COMPLETED)
        done = next(write for write in self._under_way if write.done())
        self._under_way.remove(done)
        done.result()

    async def _send(self, chunk: bytes) -> None:
        await self._redis.evalsha(DIGESTS["prepare"], len(self._prepared), *self._prepared, chunk)

    def _add(self, chunk: _Chunk, entries: Sequence[HeldEntry]) -> None:
        for entry in entries:
            chunk.orders.append((entry.order_id, entry.line().decode(), self._first_check_ms(entry)))
            self.entries += 1
            self.held_units += entry.quantity
            self.held_orders += entry.quantity > 0

    def _first_check_ms(self, entry: HeldEntry) -> int:
        """Ended orders wait only for the relay; they are spread so that they do not delay the checks of live orders."""
        if entry.quantity:
            wait_ms = FIRST_CHECK_MS + (self.entries - self._ended) // CHECKS_PER_MS
        else:
            self._ended += 1
            wait_ms = self._ended // CHECKS_PER_MS
        return self.now_ms + min(wait_ms, MAX_CHECK_DELAY_MS)

    def _record_key(self, chunk: _Chunk, order_id: str, user: int, hashed: str, placed_ms: int, quantity: int) -> None:
        remaining_ms = placed_ms + KEY_LIFETIME_MS - self.now_ms
        if remaining_ms > 0:
            value = key_record.record(OrderId(order_id), self._product, quantity)
            chunk.key_records.append((keys.key_record(UserId(user), hashed), value, remaining_ms))


def _read_model_of_row(row: asyncpg.Record) -> tuple[str, int, tuple[str, ...]]:
    status, updated_ms = Status(row["status"]), _milliseconds(row["updated_at"])
    steps = [(Status.QUEUED, row["placed_at_ms"]), (Status.AWAITING_PAYMENT, _milliseconds(row["created_at"]))]
    if status is Status.NEEDS_RECONCILIATION:
        steps.append((status, updated_ms))
    return _read_model(
        row["id"],
        status,
        *("user", row["user_id"], "product", row["product_id"], "quantity", row["quantity"]),
        *("price", row["unit_price_cents"], "currency", row["currency"], "placed", row["placed_at_ms"]),
        *("updated", updated_ms, "steps", steps_text(steps, row["placed_at_ms"])),
        *("body", key_record.body(row["product_id"], row["quantity"])),
    )


def _read_model_of_entry(entry: HeldEntry, head: PlacedHead) -> ReadModelArguments:
    """The read model of an order that Postgres does not have yet."""
    model = _read_model(
        entry.order_id,
        Status.QUEUED,
        *("user", entry.user_id, "product", head.product_id, "quantity", head.quantity),
        *("price", head.unit_price_cents, "currency", head.currency, "placed", entry.at_ms),
        *("updated", entry.at_ms, "steps", steps_text([(Status.QUEUED, entry.at_ms)], entry.at_ms)),
        *("body", key_record.body(head.product_id, head.quantity)),
    )
    return (*model, (keys.unstored(entry.user_id), KEY_LIFETIME_MS))


def _read_model(order_id: str, status: Status, *fields: object) -> tuple[str, int, tuple[str, ...]]:
    return keys.order(OrderId(order_id)), RANK[status], ("status", status.value, *map(str, fields))


def _milliseconds(at: datetime) -> int:
    return to_ms(at)
