"""Measures a rebuild: makes rows and log in bulk, rebuilds an empty Redis, and checks the resulting books.

`python -m bench.rebuild --orders 1000000`, on separate servers, which it stops at the end. `--unverified`: no order counts as
announced, so each gets an entry: the slowest rebuild.
"""

import argparse
import asyncio
import dataclasses
import resource
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
from aiokafka import AIOKafkaProducer, TopicPartition

from infra.kafka.client import make_consumer
from infra.kafka.offsets import Offsets
from infra.local.stack import reset, start_servers
from infra.redis.client import Redis
from infra.settings import Settings
from sale.books import key_record
from sale.books.books import read_book
from sale.books.due import DueList
from sale.books.key_record import key_hash
from sale.books.rebuild.rebuild import rebuild
from sale.operations.operations import Stores, connected
from sale.operations.provision import provision
from sale.tables.queries import SQL
from schemas.clock import now_ms
from schemas.codec import encode
from schemas.events import OrderPlaced, StockOpened
from schemas.ids import OrderId, ProductId, UserId, new_order_id
from schemas.limits import DEFAULT_MAX_QUANTITY
from schemas.order_state import Status
from schemas.topics import ORDER_STAGE_GROUP, ORDERS

PRICE_CENTS = 999
USERS = 50_000
ROWS_AT_ONCE = 20_000
HISTORY = (
    (Status.CONFIRMED,) * 14 + (Status.PAYMENT_FAILED,) * 4 + (Status.AWAITING_PAYMENT,) + (None,)
)  # None: no row yet
GIVEN_BACK = (Status.PAYMENT_FAILED, Status.FAILED)


@dataclass(frozen=True, slots=True)
class History:
    """Orders of one or two units in the order of placing, with the status of each."""

    product: ProductId
    orders: list[tuple[OrderPlaced, Status | None]]
    initial: int

    @classmethod
    def of(cls, product: ProductId, count: int) -> "History":
        initial, now = 2 * count, now_ms()
        orders = [(_placed(product, n, now, initial), HISTORY[n * len(HISTORY) // count]) for n in range(count)]
        return cls(product, orders, initial)

    def units(self, *statuses: Status | None) -> int:
        return sum(event.quantity for event, status in self.orders if status in statuses)


def _placed(product: ProductId, n: int, now_ms: int, initial: int) -> OrderPlaced:
    return OrderPlaced(
        order_id=new_order_id(),
        product_id=product,
        user_id=n % USERS + 1,
        quantity=1 + n % 2,
        unit_price_cents=PRICE_CENTS,
        currency="USD",
        placed_at_ms=now_ms - 3_600_000 + n // 1_000,
        epoch=1,
        version=n + 1,
        available=initial - n - 1,
        key_hash=key_hash(f"key {n}"),
    )


async def write_rows(pool: asyncpg.Pool, history: History, *, verified: bool) -> None:
    """Write the product and the rows. All ended orders ended an hour ago; `verified`: their ends are announced."""
    product = history.product
    await pool.execute(
        SQL.create_product,
        product,
        "a castle",
        PRICE_CENTS,
        "USD",
        history.initial,
        None,
        None,
        None,
        DEFAULT_MAX_QUANTITY,
    )
    ended_at = datetime.now(UTC) - timedelta(hours=1)
    columns = (
        "id product_id user_id quantity unit_price_cents currency status epoch version available key_hash placed_at_ms"
    )
    records = [
        (e.order_id, e.product_id, e.user_id, e.quantity, e.unit_price_cents, e.currency, status.value, e.epoch, e.version,
         e.available, e.key_hash, e.placed_at_ms, ended_at, ended_at)
        for e, status in history.orders if status is not None
    ]  # fmt: skip
    async with pool.acquire() as connection:
        names = [*columns.split(), "created_at", "updated_at"]
        await connection.execute("SET statement_timeout = 0")
        for first in range(0, len(records), ROWS_AT_ONCE):
            some = records[first : first + ROWS_AT_ONCE]
            await connection.copy_records_to_table("orders", records=some, columns=names)
    taken = history.units(Status.CONFIRMED, Status.AWAITING_PAYMENT)
    await pool.execute(
        "UPDATE products SET taken = $2, epoch = 1, verified_at = $3 WHERE id = $1",
        product,
        taken,
        datetime.now(UTC) if verified else None,
    )


async def write_log(settings: Settings, history: History) -> None:
    """Write every order.placed; the order stage has committed those that have a row."""
    offsets, producer = Offsets(settings), AIOKafkaProducer(
        bootstrap_servers=settings.kafka_bootstrap_servers, linger_ms=20, max_batch_size=512 * 1024
    )  # fmt: skip
    await producer.start()
    try:
        await _send(producer, [event for event, status in history.orders if status is not None])
        await _commit(settings, await offsets.ends(ORDERS))
        await _send(producer, [event for event, status in history.orders if status is None])
    finally:
        await producer.stop()
        await offsets.close()


async def _send(producer: AIOKafkaProducer, events: list[OrderPlaced]) -> None:
    for event in events:
        await producer.send(ORDERS.name, encode(event), event.order_id.encode())
    await producer.flush()


async def _commit(settings: Settings, ends: dict[int, int]) -> None:
    consumer = make_consumer(settings, group=ORDER_STAGE_GROUP)
    await consumer.start()
    try:
        at = {TopicPartition(ORDERS.name, partition): end for partition, end in ends.items()}
        consumer.assign(list(at))
        await consumer.commit(at)
    finally:
        await consumer.stop()


async def faults_of(redis: Redis, history: History, opened: StockOpened, *, verified: bool) -> list[str]:
    """The differences between Redis and rows plus log; empty if they agree."""
    book = await read_book(redis, history.product)
    assert book is not None  # a rebuild has just made it
    told = dataclasses.asdict(book.units)
    live, confirmed = history.units(Status.AWAITING_PAYMENT, None), history.units(Status.CONFIRMED)
    expected = {"initial": history.initial, "available": history.initial - live - confirmed}
    unannounced = 0 if verified else confirmed  # sold in Redis; held on the log, which is yet to tell of it
    opening = expected | {"held": live + unannounced, "sold": confirmed - unannounced}
    entries = sum(status in (Status.AWAITING_PAYMENT, None) for _, status in history.orders)
    facts = {
        "units": (told, expected | {"held": live, "sold": confirmed}),
        "stock.opened": ({name: getattr(opened, name) for name in opening}, opening),
        "entries": (len(book.entries), entries if verified else len(history.orders)),
        "looks": (await DueList(redis).length(history.product), entries if verified else len(history.orders)),
        "buyers": (sum(book.buyers.values()), live + confirmed),
        "keys": (await _known_keys(redis, history), len(history.orders)),
    }
    return [f"{what}: {told}, expected {wanted}" for what, (told, wanted) in facts.items() if told != wanted]


async def _known_keys(redis: Redis, history: History) -> int:
    """The number of orders whose key record names them."""
    known = 0
    for first in range(0, len(history.orders), 5_000):
        events = [event for event, _ in history.orders[first : first + 5_000]]
        found = await key_record.read(redis, [(UserId(event.user_id), str(event.key_hash)) for event in events])
        known += sum(
            value == key_record.record(OrderId(event.order_id), history.product, event.quantity)
            for event, value in zip(events, found, strict=True)
        )
    return known


async def rebuilt(to: Stores, history: History, *, verified: bool) -> tuple[float, list[str]]:
    """The seconds for a rebuild of an empty Redis, and the faults of its books."""
    await write_rows(to.pool, history, verified=verified)
    await write_log(to.settings, history)
    began = time.monotonic()
    opened = await rebuild(
        history.product, "measured", redis=to.redis, pool=to.pool, settings=to.settings, publisher=to.publisher
    )
    return time.monotonic() - began, await faults_of(to.redis, history, opened, verified=verified)


async def measure(settings: Settings, orders: int, *, verified: bool) -> None:
    await provision(settings)
    async with connected(settings) as stores:
        cpu = time.process_time()
        took_s, faults = await rebuilt(stores, History.of(ProductId(1), orders), verified=verified)
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(
            f"{orders} orders rebuilt in {took_s:.1f} s; {time.process_time() - cpu:.0f} s of CPU and {peak_mb} MB here,"
        )
        print("their making and checking included")
        print(*faults or ["the books equal rows and log"], sep="\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.rebuild", description=__doc__)
    parser.add_argument("--orders", type=int, default=1_000_000)
    parser.add_argument("--unverified", action="store_true", help="every order gets an entry")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="thrones-rebuild-", ignore_cleanup_errors=True) as folder:
        state_dir = Path(folder) / "state"
        try:
            env = start_servers(state_dir, tied=True)
            fields = {name.lower(): value for name, value in env.items()}
            settings = Settings.model_validate(fields | {"thrones_state_dir": state_dir})
            asyncio.run(measure(settings, args.orders, verified=not args.unverified))
        finally:
            reset(state_dir)


if __name__ == "__main__":
    main()
