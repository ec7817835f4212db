"""`thrones rewind`: replays the topics into a temporary database, compares it with the live one, and drops it.

It compares every column that follows from the log, but not the epoch, version and stock of a reservation: if Redis lost its
books, an order may have been reserved twice, and its row keeps the reservation that reached Postgres first. It writes to
the temporary database only.
"""

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
from msgspec import UNSET

from consumers.lag import read_lags
from consumers.replay.reader import ReadProgress, Record, topic_reader
from consumers.replay.replay import Say
from consumers.replay.when import show_ms
from infra.postgres.pool import CONNECT_TIMEOUT_S
from infra.settings import Settings
from sale.tables.migrate import migrate_to_newest
from schemas.codec import Undecodable, decode
from schemas.events import AnyEvent, OrderPlaced, OrderStatusChanged, StockOpened
from schemas.order_state import RANK
from schemas.topics import ORDER_STATUS, ORDERS, belongs

STAGING = Path(__file__).with_name("rewind_staging.sql")
FOLD = Path(__file__).with_name("rewind_fold.sql")
SHOWN = 100
FOREIGN_NAMED = 10
ROWS_AT_ONCE = 2_000

ORDER_COLUMNS = (
    "product_id",
    "user_id",
    "quantity",
    "unit_price_cents",
    "currency",
    "status",
    "reason",
    "key_hash",
    "charge_started_at_ms",
    "charge_answered_at_ms",
    "placed_at_ms",
)
PRODUCT_COLUMNS = ("initial", "taken")
OF_STATUS = (
    "order_id",
    "product_id",
    "user_id",
    "quantity",
    "total_cents",
    "currency",
    "status",
    "status_rank",
    "reason",
    "placed_at_ms",
    "at_ms",
    "charge_started_at_ms",
    "charge_answered_at_ms",
)
OF_PLACED = (
    "order_id",
    "product_id",
    "user_id",
    "quantity",
    "unit_price_cents",
    "currency",
    "placed_at_ms",
    "epoch",
    "version",
    "available",
    "key_hash",
)
OF_OPENED = ("product_id", "epoch", "initial", "opened_at_ms")


class RewindImpossible(Exception):
    """The database could not be created, or neither the log nor the database has the product."""


class Difference(msgspec.Struct, frozen=True):
    """One value that differs. If one side lacks the whole row, `column` is `row`."""

    table: str
    id: str
    column: str
    live: Any
    log: Any


class Foreign(msgspec.Struct, frozen=True):
    """Records of a product that has no opening on the log and no row in the database."""

    product_id: int
    records: int


class Rewound(msgspec.Struct, frozen=True):
    """`different` counts rows; `differences` lists at most SHOWN values. `before_the_log` rows are older than the kept log.

    The comparison leaves out `foreign` records, `misplaced` records (on the wrong topic) and `undecodable` records.
    `oversold` names products of which the log sold more units than there are.
    """

    equal: bool
    products: int
    orders: int
    different: int
    differences: list[Difference]
    undecodable: int
    misplaced: int
    foreign: list[Foreign]
    oversold: list[str]
    before_the_log: int
    kept_from_ms: int
    lag: int


@dataclass(slots=True)
class _Filled:
    """Counts of the replay. `kept_from_ms` is the append time before which the log was cut (0: it is complete)."""

    undecodable: int = 0
    misplaced: int = 0
    kept_from_ms: int = 0


class _Diff:
    def __init__(self) -> None:
        self.rows = 0
        self.different = 0
        self.before_the_log = 0
        self.found: list[Difference] = []

    def add(self, differences: Sequence[Difference]) -> None:
        if differences:
            self.different += 1
            self.found += differences[: max(SHOWN - len(self.found), 0)]


async def rewind(settings: Settings, product: int | None = None, say: Say | None = None) -> Rewound:
    """Raises RewindImpossible, ReplayError, PostgresError, KafkaError or OSError; it drops the database in any case."""
    lag = sum(sum(by_partition.values()) for by_partition in (await read_lags(settings)).values())
    async with _empty_database(settings) as copy:
        filled = await _fill(settings, copy, product, say)
        kept_from_ms = filled.kept_from_ms
        live = await asyncpg.connect(settings.postgres_dsn, timeout=CONNECT_TIMEOUT_S)
        try:
            foreign = await _fold(copy, live)
            oversold = [] if kept_from_ms else await _oversold(copy)
            products, orders = _Diff(), _Diff()
            if not kept_from_ms:  # sums over a cut log are incomplete
                await _compare("products", PRODUCT_COLUMNS, live, copy, product, 0, products)
            await _compare("orders", ORDER_COLUMNS, live, copy, product, kept_from_ms, orders)
        finally:
            await live.close()
    if product is not None and not products.rows + orders.rows:
        foreign_text = f", but for {foreign[0].records} records without an opening" if foreign else ""
        raise RewindImpossible(f"neither the log nor the database knows product {product}{foreign_text}")
    different = products.different + orders.different
    return Rewound(
        equal=different == 0 and not oversold,
        products=products.rows,
        orders=orders.rows,
        different=different,
        differences=(products.found + orders.found)[:SHOWN],
        undecodable=filled.undecodable,
        misplaced=filled.misplaced,
        foreign=foreign,
        oversold=oversold,
        before_the_log=orders.before_the_log,
        kept_from_ms=kept_from_ms,
        lag=lag,
    )


@asynccontextmanager
async def _empty_database(settings: Settings) -> AsyncIterator[asyncpg.Connection]:
    name = f"rewind_{uuid.uuid4().hex[:12]}"
    home = await asyncpg.connect(settings.postgres_dsn, timeout=CONNECT_TIMEOUT_S)
    try:
        try:
            await home.execute(f"CREATE DATABASE {name}")
        except asyncpg.InsufficientPrivilegeError:
            text = f"{settings.postgres_user} may not create databases: ALTER ROLE {settings.postgres_user} CREATEDB"
            raise RewindImpossible(text) from None
        try:
            there = settings.model_copy(update={"postgres_db": name})
            await migrate_to_newest(there)
            copy = await asyncpg.connect(there.postgres_dsn, timeout=CONNECT_TIMEOUT_S)
            try:
                await copy.execute(STAGING.read_text())
                yield copy
            finally:
                await copy.close()
        finally:
            await home.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await home.close()


async def _fill(settings: Settings, copy: asyncpg.Connection, product: int | None, say: Say | None) -> _Filled:
    """Replays the topics into the staging tables."""
    filled = _Filled()
    async with topic_reader(settings) as reader:
        spans = await reader.spans([ORDERS.name, ORDER_STATUS.name], None, None)
        progress = ReadProgress(total=sum(span.size for span in spans.values()))
        async for batch in reader.read(spans, progress):
            span = spans[batch[0].topic, batch[0].partition]
            if 0 < span.start == batch[0].offset:
                filled.kept_from_ms = max(filled.kept_from_ms, batch[0].timestamp)
            await _stage(copy, batch, product, filled)
            if say:
                say(progress)
    return filled


async def _fold(copy: asyncpg.Connection, live: asyncpg.Connection) -> list[Foreign]:
    """Turns staging into rows; returns the records that belong to no product."""
    known = [(row["id"],) for row in await live.fetch("SELECT id FROM products")]
    await copy.copy_records_to_table("live", records=known, columns=("product_id",), schema_name="pg_temp")
    await copy.execute(FOLD.read_text())
    found = await copy.fetch("SELECT product_id, records FROM foreigners ORDER BY product_id")
    return [Foreign(row["product_id"], row["records"]) for row in found]


async def _oversold(copy: asyncpg.Connection) -> list[str]:
    """Products with more units taken than there are, which the live database would have refused."""
    found = await copy.fetch("SELECT id, taken, initial FROM products WHERE taken > initial ORDER BY id")
    return [f"product {row['id']}: {row['taken']} units taken of {row['initial']}" for row in found]


async def _stage(copy: asyncpg.Connection, records: Sequence[Record], product: int | None, filled: _Filled) -> None:
    rows: dict[str, list[tuple[Any, ...]]] = {"placed": [], "told": [], "opened": []}
    for record in records:
        try:
            event = decode(record.value, record.headers)
        except Undecodable:
            filled.undecodable += 1
            continue
        if not belongs(event, record.topic):
            filled.misplaced += 1
        elif product is None or event.product_id == product:
            _sort(event, rows)
    for (table, found), columns in zip(rows.items(), (OF_PLACED, OF_STATUS, OF_OPENED), strict=True):
        if found:
            await copy.copy_records_to_table(table, records=found, columns=columns, schema_name="pg_temp")


def _sort(event: AnyEvent, rows: dict[str, list[tuple[Any, ...]]]) -> None:
    match event:
        case OrderPlaced():
            rows["placed"].append(_values(event, OF_PLACED))
        case OrderStatusChanged():
            rows["told"].append(_values(event, OF_STATUS, status=event.status.value, status_rank=RANK[event.status]))
        case StockOpened():
            rows["opened"].append(_values(event, OF_OPENED))
        case _:
            pass


def _values(event: AnyEvent, columns: Sequence[str], **given: object) -> tuple[Any, ...]:
    found = (given[column] if column in given else getattr(event, column) for column in columns)
    return tuple(None if value is UNSET else value for value in found)


async def _compare(
    table: str,
    columns: Sequence[str],
    live: asyncpg.Connection,
    copy: asyncpg.Connection,
    product: int | None,
    kept_from_ms: int,
    diff: _Diff,
) -> None:
    """Merges both sides by id, one row at a time, so memory does not grow with the tables."""
    async with (
        live.transaction(isolation="repeatable_read", readonly=True),
        copy.transaction(isolation="repeatable_read", readonly=True),
    ):
        in_live, in_log = _rows(live, table, columns, product), _rows(copy, table, columns, product)
        ours, theirs = await anext(in_live, None), await anext(in_log, None)
        while ours is not None or theirs is not None:
            diff.rows += 1
            if theirs is None or (ours is not None and ours["id"] < theirs["id"]):
                assert ours is not None
                if kept_from_ms and ours["placed_at_ms"] < kept_from_ms:
                    diff.before_the_log += 1
                else:
                    diff.add([Difference(table, str(ours["id"]), "row", "there", "missing")])
                ours = await anext(in_live, None)
            elif ours is None or theirs["id"] < ours["id"]:
                diff.add([Difference(table, str(theirs["id"]), "row", "missing", "there")])
                theirs = await anext(in_log, None)
            else:
                diff.add(
                    [Difference(table, str(ours["id"]), c, ours[c], theirs[c]) for c in columns if ours[c] != theirs[c]]
                )
                ours, theirs = await anext(in_live, None), await anext(in_log, None)


async def _rows(
    connection: asyncpg.Connection, table: str, columns: Sequence[str], product: int | None
) -> AsyncIterator[asyncpg.Record]:
    mine = {"orders": "product_id", "products": "id"}[table]
    # table and column names are our own, not input
    query = f"SELECT id, {', '.join(columns)} FROM {table} WHERE $1::integer IS NULL OR {mine} = $1 ORDER BY id"  # noqa: S608
    async for row in connection.cursor(query, product, prefetch=ROWS_AT_ONCE):
        yield row


def show(rewound: Rewound) -> str:
    """The comparison as text."""
    lines = [f"compared {rewound.products} products and {rewound.orders} orders with the log"]
    if rewound.kept_from_ms:
        lines.append(
            f"the log was cut at {show_ms(rewound.kept_from_ms)}: {rewound.before_the_log} older orders were not judged, "
            "nor the products' sums"
        )
    if rewound.undecodable:
        lines.append(f"{rewound.undecodable} records are no events and were left out")
    if rewound.misplaced:
        lines.append(f"{rewound.misplaced} records are on a topic that is not for them and were left out")
    if rewound.foreign:
        lines.append(
            f"left out, of products that neither the log opened nor the database knows: {_foreign(rewound.foreign)}"
        )
    if rewound.equal:
        return "\n".join([*lines, "EQUAL: the database is what the log says."])
    lines += [f"OVERSOLD by the log: {text}" for text in rewound.oversold]
    lines.append(f"{rewound.different} rows differ:")
    lines += [f"  {d.table} {d.id} {d.column}: live {d.live}, log {d.log}" for d in rewound.differences]
    if rewound.lag:
        lines.append(f"{rewound.lag} records are still to be processed: what is under way differs until then.")
    return "\n".join(lines)


def _foreign(found: Sequence[Foreign]) -> str:
    named = ", ".join(f"{each.records} of product {each.product_id}" for each in found[:FOREIGN_NAMED])
    more = len(found) - FOREIGN_NAMED
    return f"{named} and of {more} more" if more > 0 else named
