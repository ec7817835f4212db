"""Exports the lag and delay of every group and the stock of every product as gauges, while this relay leads."""

from collections.abc import Iterable
from dataclasses import dataclass

from infra.kafka.watermarks import Watermarks
from infra.metrics.definitions import GROUP_DELAY, GROUP_LAG, REDIS_MEMORY, STOCK_UNITS
from infra.redis.client import Redis
from infra.redis.memory import read_memory
from sale.books.books import Books
from schemas.ids import ProductId
from schemas.topics import CONSUMED_BY

REFRESH_INTERVAL_S = 5.0  # about Prometheus' own interval

_lag, _delay, _units = GROUP_LAG.make(), GROUP_DELAY.make(), STOCK_UNITS.make()
_memory = REDIS_MEMORY.make()


@dataclass(slots=True)
class Gauges:
    """A value that cannot be read is not exported: an old value would look current. It owns and closes the watermarks."""

    redis: Redis
    watermarks: Watermarks

    async def run_once(self, products: Iterable[ProductId]) -> None:
        """Refresh all gauges. Raises the store's error if one does not answer."""
        try:
            await self._read_stock(list(products))
            await self._read_memory()
            for group in CONSUMED_BY:
                await self._read_group(group)
        except BaseException:
            self.clear()
            raise

    async def close(self) -> None:
        self.clear()
        await self.watermarks.close()

    def clear(self) -> None:
        for gauge in (_lag, _delay, _units, _memory):
            gauge.clear()

    async def _read_memory(self) -> None:
        memory = await read_memory(self.redis)
        _memory.labels("used").set(memory.used_bytes)
        _memory.labels("max").set(memory.max_bytes)

    async def _read_group(self, group: str) -> None:
        for partition, records in (await self.watermarks.lag(group)).items():
            _lag.labels(group, partition).set(records)
        _delay.labels(group).set(await self.watermarks.delay_s(group))

    async def _read_stock(self, products: list[ProductId]) -> None:
        for product, units in zip(products, await Books(self.redis).units(products), strict=True):
            if units is not None:
                for part in ("initial", "available", "held", "sold"):
                    _units.labels(product, part).set(getattr(units, part))
