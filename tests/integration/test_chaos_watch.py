"""The watch that a fault campaign keeps on Redis: an instant at which the units do not add up is seen, and named."""

import asyncio
from collections.abc import Callable
from typing import Any

from infra.redis.client import Redis
from infra.settings import Settings
from sale.books import keys
from schemas.ids import ProductId
from tests.chaos.watch import Watch


async def test_units_that_do_not_add_up_for_a_moment_are_a_violation(
    redis: Redis, redis_settings: Settings, topics: None
) -> None:
    product = ProductId(1)
    right: dict[Any, int] = {"initial": 10, "available": 7, "held": 2, "sold": 1}
    await redis.hset(keys.stock(product), mapping=right)
    watch = Watch(redis_settings, product, [])
    watching = asyncio.create_task(watch.run())
    try:
        await _until(lambda: watch.seen >= 3)
        assert watch.violations == []
        await redis.hset(keys.stock(product), "available", 8)
        await _until(lambda: bool(watch.violations))
        assert "10 != 8 available + 2 held + 1 sold" in watch.violations[0]
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 - another task fills what is looked at
            await asyncio.sleep(0.05)
