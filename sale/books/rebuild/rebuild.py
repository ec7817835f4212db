"""Rebuilds the books of a product from Postgres, the log and the rest in Redis, under a new epoch, for the present Redis run.

Stock is loaded only here. The last write is one script that opens the books: until then the product refuses reservations,
and a rebuild that dies has changed only its prepared keys. The sources are read against the flow of an order: the order
stage's offsets, Postgres, the log from those offsets on, Redis.
"""

import asyncio
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg
from msgspec import UNSET

from infra.errors import CommandFailed
from infra.kafka.offsets import Offsets
from infra.kafka.publisher import Publisher, partition_of
from infra.kafka.watermarks import unprocessed_from
from infra.logs import get_logger
from infra.redis.client import UNREACHABLE, Redis
from infra.settings import Settings
from sale.books import keys
from sale.books.due import DueList
from sale.books.entry import HeldEntry
from sale.books.inventory import KEY_LIFETIME_MS
from sale.books.rebuild.fields import sale_arguments, stock_fields
from sale.books.rebuild.lock import books_lock
from sale.books.rebuild.prepared_books import CHECKS_PER_MS, PreparedBooks, head_of
from sale.books.rebuild.sources import CHUNK, parked, placed_since, rows_in_chunks, survivors
from sale.books.run import present_run
from sale.books.scripts import SCRIPTS
from sale.tables.queries import SQL
from schemas import topics
from schemas.clock import now_ms
from schemas.codec import encode
from schemas.events import StockOpened
from schemas.ids import ProductId
from schemas.order_state import TERMINAL, Status

ATTEMPTS = 5
PUBLISH_TIMEOUT_S = 30.0
NO_STOCK_LEFT = "no stock left after a rebuild"
KEY_USED_AGAIN = "its key was used again while the order was lost"

log = get_logger()


class RebuildImpossible(CommandFailed):
    """The product is unknown, its rows exceed its stock, or every attempt was overtaken. It stays closed."""


class _Overtaken(Exception):
    """The data that this attempt has read is outdated: start again."""


async def rebuild(
    product_id: ProductId, reason: str, *, redis: Redis, pool: asyncpg.Pool, settings: Settings, publisher: Publisher
) -> StockOpened:
    """Close the product, rebuild its books, and open it. One at a time per product; others wait.

    `redis` needs a timeout of seconds. Raises RebuildImpossible, RedisError, KafkaError, TimeoutError or a Postgres
    error; the product is then closed, and may be rebuilt again.
    """
    async with books_lock(settings, product_id, wait=True) as connection:
        assert connection is not None
        return await _Rebuild(product_id, reason, redis, pool, settings, publisher, connection).run()


async def rebuild_if_needed(
    product_id: ProductId, reason: str, *, redis: Redis, pool: asyncpg.Pool, settings: Settings, publisher: Publisher
) -> StockOpened | None:
    """Like `rebuild`, but returns None at once if another rebuild runs or has just finished."""
    async with books_lock(settings, product_id, wait=False) as connection:
        if connection is None:
            return None
        epoch = (await connection.fetchrow(SQL.product, product_id) or {"epoch": None})["epoch"]
        if await in_force(redis, product_id, epoch):
            return None
        return await _Rebuild(product_id, reason, redis, pool, settings, publisher, connection).run()


async def in_force(redis: Redis, product: ProductId, epoch: int | None) -> bool:
    """Whether the product's books were made for this Redis run, are not closed, and belong to the newest epoch."""
    run = await present_run(redis)
    of_run, state, of_epoch = await redis.hmget(keys.stock(product), ["run", "state", "epoch"])
    return of_run == run.encode() and state != b"closed" and epoch is not None and of_epoch == str(epoch).encode()


@dataclass(slots=True)
class _Totals:
    """Units by one snapshot of Postgres and the union of all orders."""

    initial: int
    confirmed: int
    started_at: datetime
    verified_as_of: datetime  # all orders that ended before this (less a minute) are settled and announced


class _Rebuild:
    def __init__(
        self,
        product: ProductId,
        reason: str,
        redis: Redis,
        pool: asyncpg.Pool,
        settings: Settings,
        publisher: Publisher,
        connection: Any,
    ) -> None:
        self._product, self._reason = product, reason
        self._redis, self._pool, self._publisher, self._settings = redis, pool, publisher, settings
        self._connection = connection

    async def run(self) -> StockOpened:
        offsets = Offsets(self._settings)
        try:
            for attempt in range(ATTEMPTS):
                try:
                    return await self._attempt(offsets)
                except (_Overtaken, *UNREACHABLE) as why:
                    log.warning("rebuild starts over", product=self._product, attempt=attempt + 1, why=repr(why))
                    await asyncio.sleep(0.2 * 2**attempt)
        finally:
            await offsets.close()
        raise RebuildImpossible(f"product {self._product}: overtaken {ATTEMPTS} times, it stays closed")

    async def _attempt(self, offsets: Offsets) -> StockOpened:
        run = await present_run(self._redis)
        started_at: datetime = await self._connection.fetchval("SELECT clock_timestamp()")
        # From here on a record of older books needs an entry, and no batch of the order stage with the old epoch is still
        # running: both lock the product's row.
        drawn = await self._pool.fetchrow(SQL.draw_epoch, self._product)
        if drawn is None:
            raise RebuildImpossible(f"there is no product {self._product}")
        epoch, self._log_lost = drawn["epoch"], drawn["log_lost"]
        books = PreparedBooks(self._redis, self._product, epoch)
        try:
            return await self._make(books, offsets, run, epoch, started_at)
        finally:
            await books.abandon()

    async def _make(
        self, books: PreparedBooks, offsets: Offsets, run: str, epoch: int, started_at: datetime
    ) -> StockOpened:
        await books.begin()
        self._found = await self._redis.hmget(keys.stock(self._product), ["epoch", "version"])  # closed: it stays
        # Before Postgres: records before these offsets have a row there, or are parked there.
        starts = await unprocessed_from(offsets, topics.ORDER_STAGE_GROUP, topics.ORDERS)
        async with self._connection.transaction(isolation="repeatable_read", readonly=True):
            totals = await self._read_rows(books, started_at)
            unrowed = await self._read_unrowed(books, offsets, starts, totals)
            row = await self._connection.fetchrow(SQL.product, self._product)
            doubles = await self._doubles(unrowed)
        if doubles:
            await self._fail(doubles, KEY_USED_AGAIN, key_lost=True)
            raise _Overtaken(f"the keys of {len(doubles)} orders were used again while only an old copy knew of them")
        await self._take_in(books, unrowed, totals.initial - totals.confirmed - books.held_units)
        books.opened_from = await self._end_of_log(offsets)
        return await self._open(books, run, epoch, row, totals)

    async def _read_rows(self, books: PreparedBooks, started_at: datetime) -> _Totals:
        product = await self._connection.fetchrow(SQL.product, self._product)
        units = {
            row["status"]: row["units"] for row in await self._connection.fetch(SQL.units_by_status, self._product)
        }
        totals = _Totals(product["initial"], units.get(Status.CONFIRMED, 0), started_at, started_at)
        self._seen: set[str] = set()
        async for rows in rows_in_chunks(self._connection, SQL.rebuild_rows, self._product):
            await self._add_rows(books, rows, totals)
        async for rows in rows_in_chunks(self._connection, SQL.units_by_user, self._product):
            await books.add_users(rows)
        self._oldest_key_ms = books.now_ms - KEY_LIFETIME_MS
        async for rows in rows_in_chunks(self._connection, SQL.rebuild_keys, self._product, self._oldest_key_ms):
            await books.add_keys(rows)
        await books.written()  # an order's key record must be written before that of a later order with the same key
        return totals

    async def _add_rows(self, books: PreparedBooks, rows: Any, totals: _Totals) -> None:
        self._seen.update(row["id"] for row in rows)
        for row in rows:
            if row["status"] in TERMINAL:  # it is announced again: the next rebuild must not treat it as announced
                totals.verified_as_of = min(totals.verified_as_of, row["updated_at"])
        await books.add_rows(rows)

    async def _read_unrowed(
        self, books: PreparedBooks, offsets: Offsets, starts: dict[int, int], totals: _Totals
    ) -> dict[str, HeldEntry]:
        """Orders that the log or Redis vouches for and that Postgres does not have yet."""
        unrowed: dict[str, HeldEntry] = {}
        self._on_log: set[str] = set()
        # The order stage has read the parked orders and parked them: they are before its offsets.
        for placed in (
            parked(self._connection, self._product),
            placed_since(self._settings, offsets, starts, self._product),
        ):
            async for entries in placed:
                for entry in await self._without_row(books, entries, totals, rows_are_held=False):
                    known = unrowed.get(entry.order_id)
                    self._on_log.add(entry.order_id)
                    if known is None or (known.epoch, known.version) < (entry.epoch, entry.version):
                        unrowed[entry.order_id] = entry
        async for entries in survivors(self._redis, self._product):
            for entry in await self._without_row(books, entries, totals, rows_are_held=True):
                unrowed[entry.order_id] = entry
        return unrowed

    async def _doubles(self, unrowed: dict[str, HeldEntry]) -> list[HeldEntry]:
        """Orders that an older copy of Redis brings back, whose key was given to another order in between.

        A key names one order: the one with a row, else one that is on the log, else the one placed first.
        """
        keyed = [(entry, head.key_hash) for entry in unrowed.values() if (head := head_of(entry)).key_hash is not UNSET]
        holders = await self._key_holders(keyed)
        doubles = []
        for entry, key_hash in sorted(keyed, key=lambda k: (k[0].order_id not in self._on_log, k[0].at_ms)):
            holder = holders.setdefault((entry.user_id, key_hash), entry.order_id)
            if holder != entry.order_id:
                doubles.append(entry)
        return doubles

    async def _key_holders(self, keyed: list[tuple[HeldEntry, str]]) -> dict[tuple[int, str], str]:
        found = {}
        for first in range(0, len(keyed), CHUNK):
            some = keyed[first : first + CHUNK]
            users, hashes = [entry.user_id for entry, _ in some], [key_hash for _, key_hash in some]
            for row in await self._connection.fetch(SQL.orders_of_keys, users, hashes, self._oldest_key_ms):
                found[row["user_id"], row["key_hash"]] = row["id"]
        return found

    async def _without_row(
        self, books: PreparedBooks, entries: list[HeldEntry], totals: _Totals, *, rows_are_held: bool
    ) -> list[HeldEntry]:
        """The entries without a row. Of the others, those that Redis holds are added; the rest is finished."""
        new = {entry.order_id: entry for entry in entries if entry.order_id not in self._seen}
        if not new:
            return []
        rows = await self._connection.fetch(SQL.rebuild_rows_by_id, list(new))
        if rows and rows_are_held:
            await self._add_rows(books, [row for row in rows if row["product_id"] == self._product], totals)
        for row in rows:
            del new[row["id"]]
        return list(new.values())

    async def _take_in(self, books: PreparedBooks, unrowed: dict[str, HeldEntry], room: int) -> None:
        """Add orders without a row in the order of acceptance. Those that do not fit are failed, and the attempt restarts."""
        if room < 0:
            raise RebuildImpossible(f"product {self._product}: its orders exceed its stock by {-room}")
        fitting, excess = [], []
        for entry in sorted(unrowed.values(), key=lambda e: (e.epoch, e.version)):
            if entry.quantity <= room:
                room -= entry.quantity
                fitting.append(entry)
            else:
                excess.append(entry)
        if excess:
            await self._fail(excess, NO_STOCK_LEFT, key_lost=False)
            raise _Overtaken(f"{len(excess)} orders were accepted twice over and have been failed")
        for first in range(0, len(fitting), CHUNK):
            await books.add_unrowed(fitting[first : first + CHUNK])
        await books.written()

    async def _fail(self, entries: list[HeldEntry], reason: str, *, key_lost: bool) -> None:
        """Fail orders, uncharged. In the next attempt each has an entry without units, through which its end is announced."""
        async with self._pool.acquire() as connection, connection.transaction():
            for entry in entries:
                head = head_of(entry)
                await connection.execute(
                    SQL.fail_order,
                    entry.order_id,
                    self._product,
                    entry.user_id,
                    head.quantity,
                    reason,
                    entry.epoch,
                    entry.version,
                    entry.available,
                    head.key_hash or None,
                    entry.at_ms,
                    key_lost,
                )

    async def _end_of_log(self, offsets: Offsets) -> int:
        """The end offset of the partition that gets the opening."""
        ends = await offsets.ends(topics.ORDERS)
        return ends[partition_of(str(self._product).encode(), len(ends))]

    async def _open(
        self, books: PreparedBooks, run: str, epoch: int, product: asyncpg.Record, totals: _Totals
    ) -> StockOpened:
        opened = self._opening(books, epoch, product, totals)
        # First on the log, then in force: no version of this epoch can be on the log before its opening.
        sent = self._publisher.publish(topics.ORDERS, str(self._product), encode(opened))
        await asyncio.wait_for(asyncio.shield(sent), PUBLISH_TIMEOUT_S)
        fields = stock_fields(opened, product, self._settings.max_held, books, sold=totals.confirmed)
        answer = await self._redis.eval(SCRIPTS["open"], 7, *books.script_keys, run, str(epoch), *fields)
        if answer != b"opened":
            raise _Overtaken(answer.decode())
        # An operator's pause since the row was read found the product closed, and did not change Redis.
        await self._redis.eval(
            SCRIPTS["sale"], 1, *sale_arguments(await self._pool.fetchrow(SQL.product, self._product))
        )
        await self._pool.execute(SQL.mark_verified, self._product, totals.verified_as_of)
        if opened.log_lost:
            await self._pool.execute(SQL.lost_log_is_told, self._product, epoch)
        await self._bring_forward(totals.started_at)
        log.info(
            "books opened",
            product=self._product,
            epoch=epoch,
            reason=self._reason,
            available=opened.available,
            held=books.held_units,
            sold=totals.confirmed,
            orders=books.entries,
        )
        return opened

    def _opening(self, books: PreparedBooks, epoch: int, product: asyncpg.Record, totals: _Totals) -> StockOpened:
        """On the log a unit is sold when that is announced. Unannounced units are held on the log, but sold in Redis."""
        return StockOpened(
            product_id=self._product,
            epoch=epoch,
            initial=totals.initial,
            available=totals.initial - totals.confirmed - books.held_units,
            held=books.held_units + books.unannounced_units,
            sold=totals.confirmed - books.unannounced_units,
            opened_at_ms=now_ms(),
            reason=self._reason,
            name=product["name"],
            found_epoch=int(self._found[0] or 0),
            found_version=int(self._found[1] or 0),
            announced_again=books.announced_again,
            log_lost=self._log_lost,
        )

    async def _bring_forward(self, started_at: datetime) -> None:
        """Check orders at once that have ended during the rebuild: settlement left them to the new books."""
        ended = [row["id"] for row in await self._pool.fetch(SQL.ended_since, self._product, started_at)]
        from_ms = now_ms()
        for first in range(0, len(ended), CHUNK):
            looks = dict.fromkeys(ended[first : first + CHUNK], from_ms + first // CHECKS_PER_MS)
            await DueList(self._redis).bring_forward(self._product, looks)


__all__ = [
    "KEY_USED_AGAIN",
    "RebuildImpossible",
    "books_lock",
    "in_force",
    "rebuild",
    "rebuild_if_needed",
    "sale_arguments",
]
