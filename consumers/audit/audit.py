"""`thrones audit`: waits until the pipeline is quiet, reads all books, and balances them."""

import asyncio
import time
import uuid
from collections.abc import Mapping, Sequence

import aiohttp
import asyncpg
import msgspec
from aiokafka.errors import KafkaError

from infra.kafka.offsets import Offsets
from infra.kafka.watermarks import Watermarks, lags
from infra.postgres.pool import UNAVAILABLE, connect_postgres
from infra.redis.client import Redis, RedisError, connect_redis
from infra.settings import Settings
from sale.books.books import Books, read_book
from sale.books.rebuild.rebuild import in_force
from sale.tables.queries import SQL
from schemas.ids import ProductId

from .balance import AuditReport, balance
from .facts import Capture, ClientAnswers, PostgresBook, ProductFacts
from .log_book import LogBook
from .readers import Logs, read_ledger, read_log, read_postgres

POLL_INTERVAL_S = 0.3
SERVER_ERRORS = (*UNAVAILABLE, KafkaError, RedisError, aiohttp.ClientError)
NOT_QUIET = "not quiet: "
MOVED = "the books moved while they were read"


class Auditor:
    """Holds the connections to one running system, for any number of audits."""

    def __init__(self, settings: Settings, redis: Redis, pool: asyncpg.Pool) -> None:
        self._settings = settings
        self._redis = redis
        self._pool = pool
        self._offsets = Offsets(settings)
        self._watermarks = Watermarks(settings)

    async def close(self) -> None:
        await self._watermarks.close()
        await self._offsets.close()

    async def products(self) -> list[ProductId]:
        return [ProductId(row["id"]) for row in await self._pool.fetch(SQL.products)]

    async def audit(
        self,
        products: Sequence[ProductId],
        wait_s: float,
        client_log: ClientAnswers | None = None,
        *,
        every: bool = False,
    ) -> AuditReport:
        """Balances when the system is quiet; at the deadline it balances anyway and reports what is not quiet as problems.

        `every`: `products` are all products, so a charge for any other order is a problem.
        """
        until = time.monotonic() + wait_s
        while True:
            unfinished = await self.wait_for_quiet(products, until)
            before = await self._versions(products)
            report = await self._balance(products, client_log, unfinished, every)
            after = await self._versions(products)
            if unfinished or before == after:
                return report
            if time.monotonic() > until:
                return msgspec.structs.replace(report, ok=False, problems=[MOVED, *report.problems])

    async def unfinished(self, products: Sequence[ProductId]) -> list[str]:
        """Describes what is still under way; empty if the system is quiet."""
        found = [
            f"group {group} has {sum(by_partition.values())} records to go"
            for group, by_partition in (await lags(self._watermarks)).items()
            if any(by_partition.values())
        ]
        for product in products:
            entries = await Books(self._redis).entries(product)
            if entries:
                found.append(f"product {product}: {entries} entries in Redis")
        for row in await self._pool.fetch(SQL.products):
            if row["id"] in products and not await in_force(self._redis, ProductId(row["id"]), row["epoch"]):
                found.append(f"product {row['id']}: its books are not in force")
        for row in await self._pool.fetch(SQL.unended_orders, list(products)):
            found.append(f"product {row['product_id']}: {row['orders']} orders are {row['status']}")
        return found

    async def wait_for_quiet(self, products: Sequence[ProductId], until: float) -> list[str]:
        """Waits at most until `until` (monotonic). Returns what is still under way; empty if the system is quiet."""
        while True:
            try:
                unfinished = await self.unfinished(products)
            except SERVER_ERRORS as error:
                unfinished = [f"a store does not answer: {type(error).__name__}: {error}"]
            if not unfinished or time.monotonic() > until:
                return unfinished
            await asyncio.sleep(POLL_INTERVAL_S)

    async def _balance(
        self, products: Sequence[ProductId], client_log: ClientAnswers | None, unfinished: list[str], every: bool
    ) -> AuditReport:
        in_redis = {product: await read_book(self._redis, product) for product in products}
        in_postgres = await read_postgres(self._pool, products)
        in_log = await read_log(self._settings, self._offsets)
        charges = _by_product(await read_ledger(self._settings), _owners(in_postgres, in_log))
        facts = [
            ProductFacts(
                product_id=product,
                redis=in_redis[product],
                postgres=book,
                log=in_log.of(product),
                captures=charges.get(product, []),
            )
            for product, book in in_postgres.items()
        ]
        missing = [f"product {product}: not in Postgres" for product in products if product not in in_postgres]
        return balance(
            facts,
            unknown_captures=[c for c in charges.get(None, []) if _is_ours(c.order_id)] if every else [],
            client_log=client_log,
            other_problems=[f"{NOT_QUIET}{text}" for text in unfinished]
            + missing
            + (lost(in_log, products) if every else []),
            other_remarks=foreign(in_log, products) if every else [],
        )

    async def _versions(self, products: Sequence[ProductId]) -> list[tuple[int, int]]:
        return [(books.epoch, books.version) for books in await Books(self._redis).standings(products)]


def _owners(in_postgres: dict[ProductId, PostgresBook], in_log: Mapping[int, LogBook]) -> dict[str, int]:
    """The product of each order id, from its row or else from the log."""
    of_log = {order_id: product for product, book in in_log.items() for order_id in book.placed}
    return of_log | {order.id: product for product, book in in_postgres.items() for order in book.orders}


def lost(in_log: Logs, products: Sequence[ProductId]) -> list[str]:
    """Products with an opening on the log but no row in Postgres."""
    return [
        f"product {product}: opened on the log, not in Postgres"
        for product, book in sorted(in_log.items())
        if product not in products and book.openings
    ]


def foreign(in_log: Logs, products: Sequence[ProductId]) -> list[str]:
    """Orders of products without an opening: the order stage has sent them to the dead letters."""
    return [
        f"product {product}: {len(book.placed)} orders on the log of a product that was never opened; left out"
        for product, book in sorted(in_log.items())
        if product not in products and not book.openings
    ]


def _by_product(captures: Sequence[Capture], owners: dict[str, int]) -> dict[int | None, list[Capture]]:
    sorted_: dict[int | None, list[Capture]] = {}
    for capture in captures:
        sorted_.setdefault(owners.get(capture.order_id), []).append(capture)
    return sorted_


def _is_ours(order_id: str) -> bool:
    """The provider may have other clients; our order ids are UUIDs of version 7."""
    try:
        return uuid.UUID(order_id).version == 7
    except ValueError:
        return False


async def audit(
    settings: Settings, product: ProductId | None, wait_s: float, client_log: ClientAnswers | None = None
) -> AuditReport:
    """Runs one audit of one product, or of all products."""
    redis = connect_redis(settings, connections=2, timeout_s=10.0)
    pool = await connect_postgres(settings, maximum=2)
    auditor = Auditor(settings, redis, pool)
    try:
        products = await auditor.products() if product is None else [product]
        return await auditor.audit(products, wait_s, client_log, every=product is None)
    finally:
        await auditor.close()
        await pool.close()
        await redis.aclose()
