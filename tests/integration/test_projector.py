"""The projector as it runs: statuses from the real topic into the read model, settled entries deleted, poison passed over."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from consumers import projector
from infra.kafka.publisher import Publisher
from infra.lifecycle import Stop
from infra.redis.client import Redis
from infra.settings import Settings
from sale.books.inventory import Inventory
from schemas.codec import encode
from schemas.ids import ProductId
from schemas.order_state import Entry, Status
from schemas.topics import ORDER_STATUS, PROJECTOR_GROUP
from tests.books import announcement, hold, open_books, read_books, read_model, wish
from tests.log import committed, producing

DONE_WITHIN_S = 30.0


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[None]:
    stop = Stop()
    task = asyncio.create_task(projector.run(settings, stop))
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait_for(task, 20)


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DONE_WITHIN_S):
        while not await holds():  # noqa: ASYNC110 - the other side is a server that tells nobody
            await asyncio.sleep(0.05)


async def test_the_news_of_an_end_reaches_the_buyer_and_only_then_the_entry_dies(
    redis_settings: Settings,
    redis: Redis,
    inventory: Inventory,
    publisher: Publisher,
    new_product: Callable[[], ProductId],
) -> None:
    """R2 from end to end, with poison in between and a restart after it: nothing is read past, nothing blocks."""
    product = new_product()
    await open_books(redis, product, 10)
    orders = [wish(product, user=n) for n in (1, 2)]
    for asked in orders:
        await hold(inventory, asked)
    settled = await inventory.settle([(product, asked.order_id, Entry.SOLD) for asked in orders])

    async def publish_end(number: int) -> None:
        settlement = settled[number]
        assert settlement is not None
        event = announcement(orders[number], Status.CONFIRMED, settlement.epoch, settlement.version)
        await publisher.publish(ORDER_STATUS, event.order_id, encode(event))

    async def is_shown(number: int) -> bool:
        shown = (await read_model(redis, orders[number].order_id))["status"] == "confirmed"
        entries = (await read_books(redis, product)).entries
        assert shown or orders[number].order_id in entries, "the entry died before its news had arrived"
        return shown and orders[number].order_id not in entries

    async def is_committed() -> bool:
        return sum((await committed(redis_settings, PROJECTOR_GROUP, ORDER_STATUS)).values()) > 0

    async with running(redis_settings):
        await publish_end(0)
        await eventually(lambda: is_shown(0))
        async with producing(redis_settings) as producer:
            for poison in (b"\xff\x00", None, b"[" * 10_000, b'{"type":"order.status"}', b"x" * 900_000):
                for partition in range(ORDER_STATUS.partitions):
                    await producer.send_and_wait(ORDER_STATUS.name, poison, b"key", partition=partition)
            await producer.send_and_wait(ORDER_STATUS.name, b"{}", partition=0, headers=[("schema-version", None)])
        assert not await is_shown(1)
    async with running(redis_settings):  # a new member goes on where the last one was
        await publish_end(1)
        await eventually(lambda: is_shown(1))
        await eventually(is_committed)  # a little later: commits cost more than records
    (await read_books(redis, product)).check()
