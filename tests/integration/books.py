"""A Kafka, a Redis and a Postgres of our own, and a sale to play on them step by step, without stages."""

import asyncio
import atexit
import os
import random
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import asyncpg
from aiokafka import TopicPartition

from infra.kafka.client import make_consumer
from infra.kafka.offsets import Offsets
from infra.kafka.publisher import Publisher
from infra.local.stack import reset, start_servers
from infra.postgres.pool import connect_postgres
from infra.redis.client import Redis, RedisError, connect_redis
from infra.settings import Settings
from infra.supervision import registry
from sale.books import keys
from sale.books.inventory import Held, Inventory, Reservation
from sale.books.key_record import key_hash
from sale.books.rebuild.rebuild import rebuild
from sale.operations.provision import provision
from sale.orders import read_rows
from sale.settlement import SettlementDesk, Verdict
from sale.tables.queries import SQL
from schemas.events import OrderStatusChanged, StockOpened
from schemas.ids import OrderId, ProductId, UserId, new_order_id
from schemas.limits import DEFAULT_MAX_QUANTITY
from schemas.order_state import Status
from schemas.topics import ORDER_STAGE_GROUP, ORDERS, Topic

STATE_DIR = Path(tempfile.gettempdir()) / f"thrones-books-{os.getpid()}"
PRICE_CENTS = 999
DRAW = random.Random()  # products of one run do not meet those of another


@lru_cache(maxsize=1)
def settings() -> Settings:
    """Servers are started once a session and end with it."""
    env = start_servers(STATE_DIR, tied=True)
    atexit.register(reset, STATE_DIR, lambda _: None)
    fields = {name.lower(): value for name, value in env.items()}
    return Settings.model_validate(fields | {"thrones_state_dir": STATE_DIR})


@dataclass(slots=True)
class Sale:
    """One product, and who plays gateway, stages and provider in tests."""

    settings: Settings
    redis: Redis
    pool: asyncpg.Pool
    publisher: Publisher
    inventory: Inventory
    desk: SettlementDesk
    product: ProductId
    orders: list[Held] = field(default_factory=list)

    async def rebuild(self, reason: str = "test") -> StockOpened:
        return await rebuild(
            self.product,
            reason,
            redis=self.redis,
            pool=self.pool,
            settings=self.settings,
            publisher=self.publisher,
        )

    async def reserve(self, user: int, quantity: int = 1, key: str | None = None) -> tuple[Reservation, Held]:
        wish = Reservation(
            new_order_id(),
            UserId(user),
            self.product,
            quantity,
            PRICE_CENTS,
            "USD",
            key_hash(key) if key else None,
        )
        answer = await self.inventory.reserve(wish)
        assert isinstance(answer, Held), answer
        return wish, answer

    async def publish(self, wish: Reservation, held: Held) -> None:
        await self.publisher.publish(ORDERS, wish.order_id, held.value)

    async def place(self, wish: Reservation, held: Held) -> str:
        """What the order stage does with order.placed; returns the row's status."""
        row = await self.pool.fetchrow(
            SQL.place_orders,
            [wish.order_id],
            [wish.product_id],
            [wish.user_id],
            [wish.quantity],
            [held.epoch],
            [held.version],
            [held.available],
            [held.at_ms],
            [wish.hashed_key],
            [True],
        )
        assert row is not None
        return str(row["status"])

    async def end(self, wish: Reservation, status: Status) -> None:
        """What the payment stage and the projector do, to the very end."""
        assert status in (Status.CONFIRMED, Status.PAYMENT_FAILED)
        await self.desk.settle([Verdict(wish.order_id, status)])

    async def end_in_postgres(self, wish: Reservation, status: Status) -> None:
        """The payment stage is killed after Postgres."""
        await self.pool.execute(SQL.settle_orders, [wish.order_id], [status], [None], [None], [None], [None])

    async def settle_and_project(self, ids: list[OrderId]) -> None:
        """What the relay and the projector do for terminal rows that are held again."""
        rows = list((await read_rows(self.pool, ids)).values())
        await self.desk.announce(rows)
        await self.inventory.project([_news(row) for row in rows])

    async def stock(self) -> dict[str, str]:
        fields = await self.redis.hgetall(keys.stock(self.product))
        return {k.decode(): v.decode() for k, v in fields.items()}  # type: ignore[union-attr]  # bytes: not decoded

    async def units(self) -> tuple[int, int, int, int]:
        stock = await self.stock()
        initial, available, held, sold = (int(stock[name]) for name in ("initial", "available", "held", "sold"))
        assert initial == available + held + sold
        assert min(available, held, sold) >= 0
        return initial, available, held, sold

    async def wipe(self) -> None:
        await self.redis.flushdb()


def _news(row: object) -> OrderStatusChanged:
    from sale.orders import OrderRow, terminal_event

    assert isinstance(row, OrderRow)
    return terminal_event(row, None)


@asynccontextmanager
async def a_sale(stock: int, *, per_user_limit: int | None = None, opened: bool = True) -> AsyncIterator[Sale]:
    """A fresh product whose order stage has read everything on the log."""
    of = settings()
    await provision(of)
    redis = connect_redis(of, timeout_s=5.0)
    pool = await connect_postgres(of)
    publisher = await Publisher.start(of)
    inventory = Inventory(redis)
    product = ProductId(DRAW.randrange(1_000, 2**31 - 1))
    await pool.execute(
        SQL.create_product,
        product,
        "a sword",
        PRICE_CENTS,
        "USD",
        stock,
        None,
        None,
        per_user_limit,
        DEFAULT_MAX_QUANTITY,
    )
    sale = Sale(of, redis, pool, publisher, inventory, SettlementDesk(pool, inventory, publisher), product)
    try:
        await have_read_all(of, ORDER_STAGE_GROUP, ORDERS)
        if opened:
            await sale.rebuild("opened")
        yield sale
    finally:
        await pool.execute("DELETE FROM orders WHERE product_id = $1", product)
        await pool.execute("DELETE FROM products WHERE id = $1", product)
        await redis.flushdb()
        await publisher.stop()
        await pool.close()
        await redis.aclose()


async def have_read_all(of: Settings, group: str, topic: Topic) -> None:
    """Commit the log's present end for a group whose members are not running."""
    await commit(of, group, topic, None)


async def commit(of: Settings, group: str, topic: Topic, at: dict[int, int] | None) -> None:
    """Commit offsets by partition; None: the present ends."""
    offsets = Offsets(of)
    consumer = make_consumer(of, group=group)
    try:
        wanted = await offsets.ends(topic) if at is None else at
        await consumer.start()
        consumer.assign([TopicPartition(topic.name, p) for p in wanted])
        await consumer.commit({TopicPartition(topic.name, p): offset for p, offset in wanted.items()})
    finally:
        await consumer.stop()
        await offsets.close()


async def kill_redis() -> None:
    """kill -9; the supervisor starts it again: a new run on the same data."""
    before = _redis_pid()
    assert before is not None
    os.kill(before, signal.SIGKILL)
    redis = connect_redis(settings(), timeout_s=1.0)
    async with asyncio.timeout(30):
        while True:
            try:
                await redis.ping()
                break
            except (RedisError, OSError):
                await asyncio.sleep(0.05)
    await redis.aclose()


def _redis_pid() -> int | None:
    return next((row["pid"] for row in registry.live_rows(STATE_DIR) if row["role"] == "redis"), None)
