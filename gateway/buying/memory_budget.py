"""Checks once a second whether Redis has room for more orders, so that a purchase does not need to ask.

Purchases stop while Redis still accepts all other writes: settlement, tokens and logins continue.
"""

import asyncio
from contextlib import suppress

from infra.lifecycle import cancelled
from infra.logs import get_logger
from infra.redis.client import Redis, RedisError
from infra.redis.memory import read_memory

REFRESH_INTERVAL_S = 1.0

log = get_logger()


class MemoryBudget:
    """`full` is from the last successful refresh. If Redis does not answer, purchases fail anyway."""

    def __init__(self, redis: Redis, full_at_share: float) -> None:
        self._redis = redis
        self._full_at_share = full_at_share
        self.full = False

    async def run(self) -> None:
        """Until cancelled."""
        while not cancelled():
            with suppress(RedisError, OSError):  # health and purchases report that Redis is down
                await self.refresh()
            await asyncio.sleep(REFRESH_INTERVAL_S)

    async def refresh(self) -> None:
        memory = await read_memory(self._redis)
        full = memory.share >= self._full_at_share
        if full != self.full:
            log.warning("redis is full" if full else "redis has room again", share=round(memory.share, 3))
        self.full = full
