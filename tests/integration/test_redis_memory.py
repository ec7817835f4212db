"""What an order keeps in Redis, measured: the sum of docs/capacity.md rests on it."""

import asyncio

import pytest
from msgspec import UNSET, structs

from bench.capacity import BUYER_BYTES, ENDED_BYTES, KEY_BYTES, LIVE_BYTES
from infra.redis.client import Redis
from infra.redis.memory import read_memory
from sale.books import keys
from sale.books.inventory import Held, Inventory, Reservation
from schemas.events import OrderStatusChanged, Step
from schemas.ids import ProductId
from schemas.order_state import Entry, Status
from tests.books import announcement, hold, open_books, wish

ORDERS = 4_000
AT_ONCE = 500
PRODUCT = ProductId(123_456)


async def test_an_order_keeps_no_more_than_the_capacity_page_says(redis: Redis, inventory: Inventory) -> None:
    """And not much less, or the page asks for more memory than is needed."""
    await open_books(redis, PRODUCT, ORDERS)
    begin = await used(redis)
    asked = [wish(PRODUCT, user=100_000 + n, key=f"key-{n}") for n in range(ORDERS)]
    held = [
        await asyncio.gather(*(hold(inventory, a) for a in asked[n : n + AT_ONCE])) for n in range(0, ORDERS, AT_ONCE)
    ]
    live = await used(redis)
    await end_all(inventory, list(zip(asked, [h for some in held for h in some], strict=True)))
    ended = await used(redis)
    assert await redis.object("encoding", keys.order(asked[0].order_id)) == b"listpack"
    for n in range(0, ORDERS, AT_ONCE):
        await redis.delete(*(keys.order(a.order_id) for a in asked[n : n + AT_ONCE]))
    with_keys = await used(redis)
    await redis.delete(keys.buyers(PRODUCT))
    key_records = await used(redis)
    assert (live - begin) / ORDERS == about(LIVE_BYTES)
    assert (ended - with_keys) / ORDERS == about(ENDED_BYTES)
    assert (with_keys - key_records) / ORDERS == about(BUYER_BYTES)
    assert (key_records - begin) / ORDERS == about(KEY_BYTES)


def about(said: int) -> object:
    """At most what is said, and no less than three quarters of it."""
    return pytest.approx(said * 0.875, abs=said * 0.125)


async def used(redis: Redis) -> int:
    async with asyncio.timeout(10):
        while True:
            if not (await redis.info("memory"))[
                "lazyfree_pending_objects"
            ]:  # large ones are freed by a thread of its own
                return (await read_memory(redis)).used_bytes
            await asyncio.sleep(0.01)


async def end_all(inventory: Inventory, orders: list[tuple[Reservation, Held]]) -> None:
    """All the way: stored, charged, confirmed, announced."""
    for first in range(0, len(orders), AT_ONCE):
        some = orders[first : first + AT_ONCE]
        await inventory.project([awaiting(a, h) for a, h in some])
        settled = await inventory.settle([(PRODUCT, a.order_id, Entry.SOLD) for a, _ in some])
        news = []
        for (a, h), s in zip(some, settled, strict=True):
            assert s is not None
            end = announcement(a, Status.CONFIRMED, s.epoch, s.version, h.at_ms + 950)
            steps = (Step(Status.PROCESSING_PAYMENT, h.at_ms + 20), Step(Status.CONFIRMED, h.at_ms + 950))
            news.append(structs.replace(end, steps=steps, placed_at_ms=h.at_ms))
        await inventory.project(news)


def awaiting(asked: Reservation, held: Held) -> OrderStatusChanged:
    way = (Status.PROCESSING, Status.PENDING, Status.AWAITING_PAYMENT)
    told = announcement(asked, Status.AWAITING_PAYMENT, 1, 1, held.at_ms + 13)
    steps = tuple(Step(status, held.at_ms + 13) for status in way)
    return structs.replace(told, steps=steps, placed_at_ms=held.at_ms, epoch=UNSET, version=UNSET)
