"""New books of one product, written beside the ones in force: entries, due times, users' counts; keys and read models.

Nothing of it is seen before open.lua puts it in force, except key records and read models, which are true already.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Any

import asyncpg
import msgspec
from msgspec import UNSET

from infra.redis_client import Redis
from schemas.ids import OrderId, ProductId, UserId
from schemas.order_state import RANK, TERMINAL, Entry, Status

from . import keys
from .entry import HeldEntry, PlacedHead, placed_head
from .inventory import FIRST_LOOK_MS, KEY_LIFETIME_MS
from .pipeliner import DIGESTS, SCRIPTS

LOOKS_PER_MS = 1  # the relay's looks at the entries are spread: it pushes at most 1,000 orders/s anyway
OLD_ATTEMPTS = 64  # prepared keys of that many earlier epochs are removed

_head_decoder = msgspec.json.Decoder(PlacedHead)


def entry_of_row(row: asyncpg.Record) -> HeldEntry:
    """A row as a held entry.

    An order that did not keep its units (failed, payment_failed) gets a quantity of 0: Postgres has given them back
    already, they may even be sold again; settling it then draws a version and moves nothing.
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
        quantity=0 if row["status"] in (Status.FAILED, Status.PAYMENT_FAILED) else row["quantity"],
        user_id=UserId(row["user_id"]),
        at_ms=row["placed_at_ms"],
        placed_head=placed_head(head),
    )


def head_of(entry: HeldEntry) -> PlacedHead:
    """Raises msgspec.DecodeError on a head that no gateway wrote."""
    return _head_decoder.decode(entry.placed_head + b"}")


class PreparedBooks:
    """The books being made under `epoch`. Counts what it is given; the caller gives no order twice."""

    def __init__(self, redis: Redis, product: ProductId, epoch: int) -> None:
        self._redis = redis
        self._product = product
        self._epoch = epoch
        self._in_force = (keys.held(product), keys.due(product), keys.buyers(product))
        self._held, self._due, self._buyers = (keys.prepared(key, epoch) for key in self._in_force)
        self._now_ms = time.time_ns() // 1_000_000
        self.held_units = 0
        self.confirmed_units = 0  # of the held ones, those of confirmed orders: they are not counted as sold yet
        self.entries = 0

    @property
    def script_keys(self) -> tuple[str, ...]:
        """open.lua's KEYS."""
        return (keys.stock(self._product), *self._in_force, self._held, self._due, self._buyers)

    async def begin(self) -> None:
        """Scripts known to Redis; nothing left of earlier attempts."""
        for body in SCRIPTS.values():
            await self._redis.script_load(body)
        old = range(max(1, self._epoch - OLD_ATTEMPTS), self._epoch)
        await self._redis.unlink(
            *(keys.prepared(key, epoch) for epoch in (*old, self._epoch) for key in self._in_force)
        )

    async def add_rows(self, rows: Sequence[asyncpg.Record]) -> None:
        """Orders that Postgres knows; those not terminal get a read model if Redis shows none as far on."""
        async with self._redis.pipeline(transaction=False) as pipe:
            self._add(pipe, [entry_of_row(row) for row in rows])
            for row in rows:
                if row["status"] == Status.CONFIRMED:
                    self.confirmed_units += row["quantity"]
                if row["status"] not in TERMINAL:
                    self._remember(pipe, row["id"], row, Status(row["status"]), _steps(row))
            await pipe.execute()

    async def add_unrowed(self, entries: Sequence[HeldEntry]) -> None:
        """Orders that only the log or Redis knows, with their users' counts, key records and read models."""
        async with self._redis.pipeline(transaction=False) as pipe:
            self._add(pipe, entries)
            for entry in entries:
                head = head_of(entry)
                pipe.hincrby(self._buyers, str(entry.user_id), entry.quantity)
                if head.key_hash is not UNSET:
                    self._record_key(pipe, entry.order_id, entry.user_id, head.key_hash, entry.at_ms, entry.quantity)
                fields = msgspec.structs.asdict(head) | {"placed_at_ms": entry.at_ms, "updated_at_ms": entry.at_ms}
                self._remember(pipe, entry.order_id, fields, Status.QUEUED, f"queued@{entry.at_ms}")
            await pipe.execute()

    async def add_users(self, rows: Sequence[asyncpg.Record]) -> None:
        await self._redis.hset(self._buyers, mapping={str(row["user_id"]): row["units"] for row in rows})

    async def add_keys(self, rows: Sequence[asyncpg.Record]) -> None:
        async with self._redis.pipeline(transaction=False) as pipe:
            for row in rows:
                self._record_key(pipe, row["id"], row["user_id"], row["key_hash"], row["placed_at_ms"], row["quantity"])
            await pipe.execute()

    def _add(self, pipe: Any, entries: Sequence[HeldEntry]) -> None:
        if not entries:
            return
        first_look = self._now_ms + FIRST_LOOK_MS + self.entries // LOOKS_PER_MS
        self.entries += len(entries)
        self.held_units += sum(entry.quantity for entry in entries)
        pipe.execute_command("HSET", self._held, *_flat((entry.order_id, entry.line()) for entry in entries))
        looks = ((first_look + i // LOOKS_PER_MS, entry.order_id) for i, entry in enumerate(entries))
        pipe.execute_command("ZADD", self._due, *_flat(looks))

    def _record_key(self, pipe: Any, order_id: str, user: int, hashed: str, placed_ms: int, quantity: int) -> None:
        remaining_ms = placed_ms + KEY_LIFETIME_MS - self._now_ms
        if remaining_ms > 0:
            value = f"{order_id} {self._product}:{quantity}"
            pipe.execute_command("SET", keys.key_record(UserId(user), hashed), value, "NX", "PX", remaining_ms)

    def _remember(self, pipe: Any, order_id: str, row: Any, status: Status, steps: str) -> None:
        fields: tuple[object, ...] = (
            *("user", row["user_id"], "product", self._product, "quantity", row["quantity"]),
            *("price", row["unit_price_cents"], "currency", row["currency"], "status", status.value),
            *("placed", row["placed_at_ms"], "updated", _updated_ms(row), "steps", steps),
            *("body", f"{self._product}:{row['quantity']}"),
        )
        pipe.execute_command("EVALSHA", DIGESTS["remember"], 1, keys.order(OrderId(order_id)), RANK[status], *fields)


def _flat(pairs: Iterable[tuple[object, object]]) -> list[Any]:
    return [part for pair in pairs for part in pair]


def _milliseconds(at: Any) -> int:
    return int(at.timestamp() * 1000)


def _updated_ms(row: Any) -> int:
    return int(row["updated_at_ms"]) if isinstance(row, dict) else _milliseconds(row["updated_at"])


def _steps(row: asyncpg.Record) -> str:
    steps = [f"queued@{row['placed_at_ms']}", f"{Status.AWAITING_PAYMENT}@{_milliseconds(row['created_at'])}"]
    if row["status"] == Status.NEEDS_RECONCILIATION:
        steps.append(f"{Status.NEEDS_RECONCILIATION}@{_milliseconds(row['updated_at'])}")
    return ";".join(steps)
