"""A running sale in, looks at it several times a second out: does Redis add up at that instant, how far behind is each stage."""

import asyncio
import contextlib
import time
from dataclasses import dataclass, field

from infra.kafka.watermarks import KAFKA_ERRORS, Watermarks
from infra.lifecycle import background, cancelled
from infra.redis.client import Redis, RedisError, connect_redis
from infra.settings import Settings
from sale.books.books import Books
from schemas.ids import ProductId
from schemas.topics import CONSUMED_BY

from .trial import Look

UNITS_INTERVAL_S = 0.1
BEHIND_INTERVAL_S = 0.5
SHOWN = 5


@dataclass
class Watch:
    """I1 is checked many times a second; a store that is away is no violation, only unseen."""

    settings: Settings
    product: int
    looks: list[Look]
    violations: list[str] = field(default_factory=list)
    seen: int = 0

    async def run(self) -> None:
        redis = connect_redis(self.settings, connections=2, timeout_s=0.5)
        watermarks = Watermarks(self.settings)
        try:
            async with background(self._watch_units(redis), self._watch_stages(watermarks)):
                await asyncio.Event().wait()  # until cancelled
        finally:
            await watermarks.close()
            await redis.aclose()

    async def _watch_units(self, redis: Redis) -> None:
        while not cancelled():
            with contextlib.suppress(RedisError, OSError, TimeoutError):
                [units] = await Books(redis).units([ProductId(self.product)])
                if units is not None:
                    self.seen += 1
                    if not units.balances and len(self.violations) < SHOWN:
                        self.violations.append(f"I1 at {time.time():.1f}: {units}")
            await asyncio.sleep(UNITS_INTERVAL_S)

    async def _watch_stages(self, watermarks: Watermarks) -> None:
        while not cancelled():
            behind = {}
            for group in CONSUMED_BY:
                with contextlib.suppress(*KAFKA_ERRORS):
                    behind[group] = await watermarks.delay_s(group)
            self.looks.append(Look(time.time(), behind))
            await asyncio.sleep(BEHIND_INTERVAL_S)
