"""A storm of buyers in processes of their own: every process connects for itself, waits for the others, then all at once."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, Literal

from infra.redis.client import Redis, connect_redis
from infra.settings import Settings
from sale.books import keys
from sale.books.inventory import Held, Inventory, Known
from schemas.ids import ProductId
from tests.books import code, wish

PROCESSES = 3
TASKS = 24  # buyers at once in each process, each with a connection of its own

Guard = Literal["reserve.lua", "GET then SET"]


@dataclass(frozen=True, slots=True)
class Buying:
    """One process' part of a storm."""

    settings: Settings
    product: ProductId
    orders: int
    quantities: tuple[int, ...]
    guard: Guard
    number: int


@dataclass(frozen=True, slots=True)
class Copies:
    """One process' copies of requests that carry the same keys as everybody else's."""

    settings: Settings
    product: ProductId
    keys: int
    copies: int
    number: int


Answer = tuple[str, str, bool]  # key, order id, same body


async def _all_ready(redis: Redis, product: ProductId) -> None:
    meeting = f"meeting:{product}"
    await redis.incr(meeting)
    give_up_at = time.monotonic() + 30
    while int(await redis.get(meeting) or 0) < PROCESSES:
        assert time.monotonic() < give_up_at, "the other processes of the storm did not come"
        await asyncio.sleep(0.002)


async def get_then_set(redis: Redis, product: ProductId, quantity: int) -> bool:
    """What everybody writes first: read the stock, compare, write it back. Right for one buyer at a time."""
    stock = keys.stock(product)
    available, held, version = (int(n or 0) for n in await redis.hmget(stock, ["available", "held", "version"]))
    if available < quantity:
        return False
    mapping: dict[Any, Any] = {"available": available - quantity, "held": held + quantity, "version": version + 1}
    await redis.hset(stock, mapping=mapping)
    return True


async def _buy(storm: Buying) -> int:
    redis = connect_redis(storm.settings, connections=TASKS, timeout_s=30.0)
    inventory = Inventory(redis)
    bought = 0
    wishes = [
        wish(storm.product, user=storm.number * 100_000 + n, quantity=storm.quantities[n % len(storm.quantities)])
        for n in range(1, storm.orders + 1)
    ]

    async def one(buyer: int) -> None:
        nonlocal bought
        for asked in wishes[buyer::TASKS]:
            if storm.guard == "reserve.lua":
                accepted = code(await inventory.reserve(asked)) == "held"
            else:
                accepted = await get_then_set(redis, storm.product, asked.quantity)
            bought += asked.quantity if accepted else 0

    try:
        await _all_ready(redis, storm.product)
        await asyncio.gather(*map(one, range(TASKS)))
    finally:
        await redis.aclose()
    return bought


async def _copy(storm: Copies) -> list[Answer]:
    redis = connect_redis(storm.settings, connections=TASKS, timeout_s=30.0)
    inventory = Inventory(redis)

    async def one(number: int, copy: int) -> Answer:
        key = f"key-{number}"
        # Every tenth copy comes with another body.
        asked = wish(storm.product, user=number, key=key, quantity=2 if copy % 10 == 9 else 1)
        answer = await inventory.reserve(asked)
        match answer:
            case Held():
                return key, asked.order_id, True
            case Known(order_id=order_id, same_body=same_body):
                return key, order_id, same_body
            case _:
                raise AssertionError(answer)

    try:
        await _all_ready(redis, storm.product)
        copies = [one(number, copy) for copy in range(storm.copies) for number in range(1, storm.keys + 1)]
        return list(await asyncio.gather(*copies))
    finally:
        await redis.aclose()


def buy(storm: Buying) -> int:
    """Units that this process was given."""
    return asyncio.run(_buy(storm))


def copy(storm: Copies) -> list[Answer]:
    return asyncio.run(_copy(storm))


class Crowd:
    """Processes that are started once and storm as often as asked."""

    def __init__(self) -> None:
        # spawn: a forked child would share its parent's connections
        self._pool = ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn"))

    def __enter__(self) -> "Crowd":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def storm(self, part: Callable[[Any], Any], parts: list[Any]) -> list[Any]:
        assert len(parts) == PROCESSES
        return list(self._pool.map(part, parts))
