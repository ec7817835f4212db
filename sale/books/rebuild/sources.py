"""The sources of a rebuild: rows, order.placed (parked, and from the order stage's offsets on), and the entries in Redis.

All are read with bounded memory. Records that cannot be parsed are skipped (the order stage sends them to the dead letters).
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, cast

import asyncpg
import msgspec
from aiokafka import TopicPartition

from infra.kafka.client import CLOSE_TIMEOUT_S, make_consumer
from infra.kafka.offsets import Offsets
from infra.lifecycle import close_within
from infra.logs import get_logger
from infra.redis.client import Redis
from infra.settings import Settings
from sale.books import keys
from sale.books.entry import HeldEntry, parse, placed_head_of
from sale.books.rebuild.prepared_books import head_of
from sale.tables.queries import SQL
from schemas import topics
from schemas.codec import Undecodable, decode
from schemas.events import OrderPlaced
from schemas.ids import OrderId, ProductId, UserId, parse_order_id
from schemas.order_state import Entry

CHUNK = 1_000
LOG_STALL_S = 15.0  # without a record for this long Kafka counts as down: the rebuild fails instead of hanging

log = get_logger()


async def rows_in_chunks(connection: Any, statement: str, *args: object) -> AsyncIterator[Sequence[asyncpg.Record]]:
    """The rows of a statement within the connection's transaction, never all in memory at once."""
    cursor = await connection.cursor(statement, *args)
    while rows := await cursor.fetch(CHUNK):
        yield rows


async def parked(connection: Any, product: ProductId) -> AsyncIterator[list[HeldEntry]]:
    """The entries for the product's parked orders."""
    async for rows in rows_in_chunks(connection, SQL.parked_orders, product):
        yield [entry for row in rows if (entry := _entry_of(row["record"], product))]


async def placed_since(
    settings: Settings, offsets: Offsets, starts: Mapping[int, int], product: ProductId
) -> AsyncIterator[list[HeldEntry]]:
    """The entries for the product's order.placed from `starts` to the present end of the log."""
    ends = {TopicPartition(topics.ORDERS.name, p): end for p, end in (await offsets.ends(topics.ORDERS)).items()}
    open_ends = {tp: end for tp, end in ends.items() if starts.get(tp.partition, 0) < end}
    if not open_ends:
        return
    consumer = make_consumer(settings, max_partition_fetch_bytes=4 << 20)
    try:
        await consumer.start()
        consumer.assign(list(open_ends))
        for tp in open_ends:
            consumer.seek(tp, starts.get(tp.partition, 0))
        while open_ends:
            async with asyncio.timeout(LOG_STALL_S):
                values = await _next_values(consumer, open_ends)
            yield [entry for value in values if (entry := _entry_of(value, product))]
            for tp in [tp for tp, end in open_ends.items() if await consumer.position(tp) >= end]:
                del open_ends[tp]
    finally:
        await close_within(consumer.stop(), CLOSE_TIMEOUT_S)


async def _next_values(consumer: Any, open_ends: Mapping[TopicPartition, int]) -> list[bytes]:
    while True:
        fetched = await consumer.getmany(*open_ends, timeout_ms=500, max_records=CHUNK)
        if fetched:
            return [record.value for records in fetched.values() for record in records]


def _entry_of(value: bytes, product: ProductId) -> HeldEntry | None:
    try:
        event = decode(value)
    except Undecodable:
        return None
    if not isinstance(event, OrderPlaced) or event.product_id != product or parse_order_id(event.order_id) is None:
        return None
    return HeldEntry(
        order_id=OrderId(event.order_id),
        state=Entry.HELD,
        epoch=event.epoch,
        version=event.version,
        available=event.available,
        quantity=event.quantity,
        user_id=UserId(event.user_id),
        at_ms=event.placed_at_ms,
        placed_head=placed_head_of(event),
    )


async def survivors(redis: Redis, product: ProductId) -> AsyncIterator[list[HeldEntry]]:
    """The entries in Redis. A scan may return one twice; the product is closed, so none is added."""
    cursor = 0
    while True:
        cursor, found = await redis.hscan(keys.held(product), cursor, count=CHUNK)
        lines = cast("dict[bytes, bytes]", found)
        yield [entry for field, line in lines.items() if (entry := _survivor(field, line))]
        if not cursor:
            return


def _survivor(field: bytes, line: bytes) -> HeldEntry | None:
    try:
        order_id = parse_order_id(field.decode())
        if order_id is None:
            raise ValueError("not an order id")
        entry = parse(order_id, line)
        head_of(entry)
        return entry
    except (ValueError, KeyError, msgspec.DecodeError):
        log.error("unreadable entry is left out of the new books", order_id=repr(field[:40]))
        return None
