"""The books' readers: each asks one store itself, without the pipeline's read models, and hands plain facts on."""

import time
from collections.abc import Sequence
from typing import Any, Literal

import aiohttp
import asyncpg
import msgspec
from aiokafka import TopicPartition

from infra.kafka.client import make_consumer
from infra.kafka.offsets import Offsets
from infra.settings import Settings
from sale.tables.queries import SQL
from schemas.clock import now_ms, to_ms
from schemas.codec import Undecodable, decode
from schemas.events import OrderPlaced, OrderStatusChanged, SaleControlled, StockOpened
from schemas.ids import ProductId
from schemas.money import to_cents
from schemas.order_state import Status
from schemas.topics import ORDER_STATUS, ORDERS, SALE_ACTIONS, belongs

from .facts import AuditedOrder, Capture, PostgresBook
from .log_book import LogBook

ROWS_AT_ONCE = 5_000
RECORDS_AT_ONCE = 5_000
LEDGER_TIMEOUT_S = 30.0
LOG_STALL_S = 30.0


async def read_postgres(pool: asyncpg.Pool, products: Sequence[ProductId]) -> dict[ProductId, PostgresBook]:
    """Products and their orders, all from one snapshot."""
    async with pool.acquire() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
        books = {}
        for product in products:
            row = await connection.fetchrow(SQL.product, product)
            if row is None:
                continue
            cursor = connection.cursor(SQL.audit_orders, product, prefetch=ROWS_AT_ONCE)
            orders = [_order(record) async for record in cursor]
            closes_at_ms = to_ms(row["closes_at"]) if row["closes_at"] else None
            books[product] = PostgresBook(
                row["initial"], row["taken"], row["epoch"], orders, row["per_user_limit"], closes_at_ms
            )
        return books


def _order(record: asyncpg.Record) -> AuditedOrder:
    return AuditedOrder(**{**record, "status": Status(record["status"])})


class Logs(dict[int, LogBook]):
    """Books by product, of a log that is kept from `kept_from_ms` on (0: whole)."""

    kept_from_ms = 0

    def of(self, product: ProductId) -> LogBook:
        """Also of a product that the log does not name (any more)."""
        book = self.setdefault(product, LogBook(product))
        book.kept_from_ms = self.kept_from_ms
        return book


async def read_log(settings: Settings, offsets: Offsets) -> Logs:
    """Every product's log, from the first record still kept to what was its end when this was called."""
    begins = await _positions(offsets, "begins")
    ends = await _positions(offsets, "ends")
    unread = {tp for tp, end in ends.items() if begins[tp] < end}
    books = Logs()
    if any(0 < begins[tp] == end for tp, end in ends.items()):
        books.kept_from_ms = now_ms()  # of such a partition nothing is kept that is older than now
    if not unread:
        return books
    consumer = make_consumer(settings, max_partition_fetch_bytes=4 * 1024 * 1024)
    try:
        await consumer.start()
        consumer.assign(list(unread))
        for tp in unread:
            consumer.seek(tp, begins[tp])
        read_at = time.monotonic()
        while unread:
            fetched = await consumer.getmany(timeout_ms=200, max_records=RECORDS_AT_ONCE)
            read_at = time.monotonic() if fetched else read_at
            if time.monotonic() - read_at > LOG_STALL_S:
                raise TimeoutError(f"no record of the log for {LOG_STALL_S:.0f} s, {len(unread)} partitions to go")
            for tp, records in fetched.items():
                if begins[tp] > 0 and records[0].offset == begins[tp]:
                    books.kept_from_ms = max(books.kept_from_ms, records[0].timestamp)
                _fold(books, [record for record in records if record.offset < ends[tp]])
            done = {tp for tp in unread if await consumer.position(tp) >= ends[tp]}
            consumer.pause(*done)
            unread -= done
    finally:
        await consumer.stop()
    for product in books:
        books.of(ProductId(product))
    return books


async def _positions(offsets: Offsets, which: Literal["begins", "ends"]) -> dict[TopicPartition, int]:
    return {
        TopicPartition(topic.name, partition): offset
        for topic in (ORDERS, ORDER_STATUS, SALE_ACTIONS)
        for partition, offset in (await getattr(offsets, which)(topic)).items()
    }


def _fold(books: dict[int, LogBook], records: list[Any]) -> None:
    for record in records:
        try:
            event = decode(record.value, record.headers)
        except Undecodable:
            continue  # what is not an event is in nobody's books; the stages have put it among the dead letters
        # What stands on a topic that is not for it is nobody's news either.
        if isinstance(event, OrderPlaced | OrderStatusChanged | StockOpened | SaleControlled) and belongs(
            event, record.topic
        ):
            book = books.get(event.product_id)
            if book is None:
                book = books[event.product_id] = LogBook(event.product_id)
            book.add(event, record.timestamp)


class _LedgerLine(msgspec.Struct, frozen=True, rename="camel"):
    order_id: str
    amount: str
    currency: str


async def read_ledger(settings: Settings) -> list[Capture]:
    """Every movement of money, as the provider has it on disk."""
    timeout = aiohttp.ClientTimeout(total=LEDGER_TIMEOUT_S)
    async with (
        aiohttp.ClientSession(timeout=timeout, raise_for_status=True) as session,
        session.get(f"{settings.payment_gateway_url}/ledger", allow_redirects=False) as response,
    ):
        lines = msgspec.json.decode(await response.read(), type=list[_LedgerLine])
    return [Capture(line.order_id, to_cents(line.amount), line.currency) for line in lines]
