"""How much this machine can take, today: a stack in, L out, half of the rate at which orders go all the way to their end."""

import asyncio
import time

from consumers.audit.audit import Auditor
from infra.postgres.pool import connect_postgres
from infra.redis.client import connect_redis
from schemas.ids import ProductId
from tests.e2e.stack import GOOD_WEATHER

from .ground import Ground

SECONDS = 6.0
DRAIN_MAX_S = 60.0
LEAST, MOST = 40.0, 500.0


async def calibrate(ground: Ground) -> float:
    """Half of the knee, within bounds."""
    orders, knee = await sell(ground)
    rate = round(min(MOST, max(LEAST, knee / 2)))
    print(f"{orders} orders to their end at {knee:.0f}/s: L is {rate} wishes a second", flush=True)
    return rate


async def sell(ground: Ground) -> tuple[int, float]:
    """A short closed load, timed until its last order has ended: how many, and how many a second. Makes a new stack warm, too."""
    await asyncio.to_thread(ground.set_weather, GOOD_WEATHER)
    product = await asyncio.to_thread(ground.new_product, 200_000)
    started = time.monotonic()
    result = await ground.buy(product, mode="closed", connections=48, seconds=SECONDS, timeout_s=8.0)
    await _drained(ground, product)
    return result.orders, result.orders / (time.monotonic() - started)


async def _drained(ground: Ground, product: int) -> None:
    settings = ground.settings()
    redis, pool = connect_redis(settings, connections=2, timeout_s=10.0), await connect_postgres(settings, maximum=2)
    auditor = Auditor(settings, redis, pool)
    try:
        restless = await auditor.wait_for_quiet([ProductId(product)], time.monotonic() + DRAIN_MAX_S)
        assert not restless, restless
    finally:
        await auditor.close()
        await pool.close()
        await redis.aclose()
