"""Keeps the books of all products in force for the present Redis run and announced on the present log; rebuilds others.

Only a rebuild opens stock. There is one rebuild at a time per product (it holds a lock), and a few at once, with backoff.
"""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

import asyncpg
from aiokafka.errors import KafkaError

from infra.backoff import doubled, jittered
from infra.kafka.client import create_topics
from infra.kafka.publisher import Publisher
from infra.logs import get_logger
from infra.metrics.definitions import RELAY_CLOSED, RELAY_REBUILD_FAILURES, RELAY_REBUILDS
from infra.postgres.pool import RECORDS_FAULT, UNAVAILABLE
from infra.redis.client import Redis, RedisError
from infra.settings import Settings
from sale.books.books import Books, BooksStanding
from sale.books.due import DueList
from sale.books.inventory import Inventory
from sale.books.rebuild.rebuild import RebuildImpossible, in_force, rebuild_if_needed
from sale.books.run import present_run, record_verified
from sale.openings import EventLog
from sale.tables.queries import SQL
from schemas.ids import ProductId

PRODUCTS_INTERVAL_S = 0.5
LOG_INTERVAL_S = 1.0
MARK_INTERVAL_S = 10.0
GRACE_S = 5.0  # the creator of a product opens its stock; after this time the relay does
BACKOFF_FIRST_S = 0.5
BACKOFF_MOST_S = 10.0
AT_ONCE = 4
WENT_BACK = "books went back"
REBUILD_MAX_S = 300.0  # a million orders take about one minute; a rebuild that hangs is restarted
FAILURES = (*UNAVAILABLE, *RECORDS_FAULT, RedisError, KafkaError, RebuildImpossible)

_rebuilds, _failures, _closed = RELAY_REBUILDS.make(), RELAY_REBUILD_FAILURES.make(), RELAY_CLOSED.make()
log = get_logger()


@dataclass(frozen=True, slots=True)
class KeptProduct:
    """A product's row, and the state of its books."""

    id: ProductId
    epoch: int
    fresh: bool  # just created, its stock not opened yet
    books: BooksStanding

    @property
    def version(self) -> tuple[int, int]:
        """Epoch and version of the books."""
        return self.books.epoch, self.books.version

    def fault(self, run: str, seen: tuple[int, int] = (0, 0)) -> str | None:
        """Why the books are not in force, for the log; None if they are. `seen`: the last known epoch and version."""
        if self.books.run is None:
            return "no books"
        if self.books.run != run:
            return "new redis run"
        if self.version < seen:
            return WENT_BACK
        if self.books.closed:
            return "closed"
        return None if self.books.epoch == self.epoch else "a newer rebuild was begun"


@dataclass(slots=True)
class Keeper:
    """`in_force`: the products whose books are in force, with their epochs. Only their entries may be checked."""

    settings: Settings
    redis: Redis
    pool: asyncpg.Pool
    publisher: Publisher
    log: EventLog
    in_force: dict[ProductId, int] = field(default_factory=dict)
    _rows: list[tuple[ProductId, int, bool]] = field(default_factory=list)
    _rows_read_at: float = -PRODUCTS_INTERVAL_S
    _log_checked_at: float = -LOG_INTERVAL_S
    _marked: dict[ProductId, tuple[int, int]] = field(default_factory=dict)
    _announced: dict[ProductId, int] = field(default_factory=dict)  # the epoch whose stock.opened was seen on the log
    _rebuilding: dict[ProductId, asyncio.Task[None]] = field(default_factory=dict)
    _failures: dict[ProductId, tuple[int, float]] = field(
        default_factory=dict
    )  # how many, and the time of the next attempt
    _seen: dict[ProductId, tuple[int, int]] = field(default_factory=dict)  # newest epoch and version of the books
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))

    async def run_once(self) -> None:
        """Read the state of all books, and start the due rebuilds. Raises the store's error if one does not answer."""
        self._reap()
        run, seen = await present_run(self.redis), dict(self._seen)  # before reading the books: only later values count
        products = await self._read_products()
        faults = {p.id: fault for p in products if (fault := p.fault(run, seen.get(p.id, (0, 0)))) is not None}
        self.in_force = {p.id: p.books.epoch for p in products if p.id not in faults}
        overdue = [p for p in products if p.id in faults and not p.fresh]
        _closed.set(len(overdue))
        for product in overdue:
            if faults[product.id] == WENT_BACK and not product.books.closed:
                await self._close(product.id)
            self._start_rebuild(product.id, faults[product.id])
        if len(self.in_force) == len(products):
            await record_verified(self.redis, run)

    async def check_log(self) -> None:
        """Create missing topics, and close products whose opening the log has lost. Raises KafkaError."""
        wiped = await self.log.was_wiped()
        if wiped:
            log.error("the log was wiped: every product gets a new epoch")
            await create_topics(self.settings)
            self._announced.clear()
        for product in await self._read_products():
            epoch = self.in_force.get(product.id)
            if epoch is None or self._announced.get(product.id) == epoch:
                continue
            # A copy of its opening may have arrived late, on a log that has lost the records after it.
            if wiped or not await self.log.has_opening(product.id, epoch, product.books.opened_from):
                if self.in_force.get(product.id) == epoch:  # not rebuilt during the search
                    log.error("the log has lost the product's records: closing", product=product.id, epoch=epoch)
                    await self.pool.execute(SQL.note_lost_log, product.id)
                    await self._close(product.id)
            else:
                self._announced[product.id] = epoch

    async def stop(self) -> None:
        tasks = list(self._rebuilding.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _read_products(self) -> list[KeptProduct]:
        if time.monotonic() - self._rows_read_at >= PRODUCTS_INTERVAL_S:
            records = await self.pool.fetch(SQL.products)
            self._rows = [(ProductId(r["id"]), r["epoch"], _is_fresh(r)) for r in records]
            self._rows_read_at = time.monotonic()
        standings = await Books(self.redis).standings([id_ for id_, _, _ in self._rows])
        products = [KeptProduct(*row, books) for row, books in zip(self._rows, standings, strict=True)]
        self._record_seen(products)
        return products

    def _record_seen(self, products: Iterable[KeptProduct]) -> None:
        for product in products:
            self._seen[product.id] = max(self._seen.get(product.id, (0, 0)), product.version)

    async def _close(self, product: ProductId) -> None:
        """Close the books: no script accepts them, and a rebuild is needed."""
        await Inventory(self.redis).close(product)

    def _reap(self) -> None:
        for product, task in list(self._rebuilding.items()):
            if task.done():
                del self._rebuilding[product]
                task.result()  # any other error than a store's ends the process

    def _start_rebuild(self, product: ProductId, reason: str) -> None:
        _, not_before = self._failures.get(product, (0, 0.0))
        if product not in self._rebuilding and time.monotonic() >= not_before:
            self._rebuilding[product] = asyncio.create_task(self._rebuild(product, reason))

    async def _rebuild(self, product: ProductId, reason: str) -> None:
        try:
            async with self._slots, asyncio.timeout(REBUILD_MAX_S):
                opened = await rebuild_if_needed(
                    product,
                    reason,
                    redis=self.redis,
                    pool=self.pool,
                    settings=self.settings,
                    publisher=self.publisher,
                )
            if opened is not None:
                _rebuilds.labels(reason).inc()
                self._announced[product] = opened.epoch
            self._failures.pop(product, None)
        except FAILURES as error:
            failures = self._failures.get(product, (0, 0.0))[0] + 1
            pause_s = jittered(doubled(BACKOFF_FIRST_S, failures - 1, BACKOFF_MOST_S))
            self._failures[product] = (failures, time.monotonic() + pause_s)
            _failures.inc()
            log.error("rebuild failed", product=product, reason=reason, failures=failures, error=repr(error))
        finally:
            self._rows_read_at = -PRODUCTS_INTERVAL_S  # its epoch has changed: read the rows again

    async def mark_verified(self) -> None:
        """Store the time up to which all ends are announced, so that the next rebuild need not announce them again."""
        for product in await self._read_products():
            moved = self._marked.get(product.id) != product.version
            if product.id in self.in_force and product.books.version and moved:
                await self._mark(product)
                await DueList(self.redis).restore(product.id)

    async def _mark(self, product: KeptProduct) -> None:
        """An ended but unannounced order has an entry, from before its end until its announcement."""
        now: datetime = await self.pool.fetchval("SELECT clock_timestamp()")  # before reading the entries
        owed_since = await self._owed_since(product.id)
        # Checked after reading the entries: if Redis was wiped in between, missing entries prove nothing.
        if await in_force(self.redis, product.id, product.books.epoch):
            await self.pool.execute(SQL.mark_verified, product.id, min(now, owed_since or now))
        if owed_since is None:
            self._marked[product.id] = product.version

    async def _owed_since(self, product: ProductId) -> datetime | None:
        """The earliest end among orders that have an entry; None if none of them has ended."""
        earliest: datetime | None = None
        async for ids in DueList(self.redis).held_ids(product):
            ended: datetime | None = await self.pool.fetchval(SQL.earliest_end, ids)
            earliest = min(filter(None, (earliest, ended)), default=None)
        return earliest


def _is_fresh(row: asyncpg.Record) -> bool:
    # Less than 0 s old: the server's clock was set back since, and no creator is at work any more.
    return row["verified_at"] is None and 0 <= (row["read_at"] - row["created_at"]).total_seconds() < GRACE_S
