"""Stock hashes in, stock.changed out: one sample per product whenever it has changed, at most one under way."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from infra.kafka.publisher import Publisher
from infra.redis.client import Redis
from sale.books import keys
from schemas.clock import now_ms
from schemas.codec import encode
from schemas.events import StockChanged
from schemas.ids import ProductId
from schemas.topics import STOCK_CHANGES

SAMPLE_EVERY_S = 0.05


@dataclass(slots=True)
class Sampler:
    """What is lost is not missed: a later sample says more."""

    redis: Redis
    publisher: Publisher
    _published: dict[ProductId, tuple[int, int]] = field(default_factory=dict)
    _under_way: dict[ProductId, "asyncio.Future[None]"] = field(default_factory=dict)

    async def turn(self, products: Iterable[ProductId]) -> None:
        wanted = [product for product in products if not self._is_under_way(product)]
        samples = await self.redis.replies(
            [("HMGET", keys.stock(product), "epoch", "version", "available") for product in wanted]
        )
        for product, (epoch, version, available) in zip(wanted, samples, strict=True):
            if epoch is not None and available is not None:
                self._publish(product, int(epoch), int(version), int(available))

    def _publish(self, product: ProductId, epoch: int, version: int, available: int) -> None:
        if self._published.get(product) == (epoch, version):
            return
        self._published[product] = (epoch, version)
        sample = StockChanged(product_id=product, epoch=epoch, version=version, available=available, at_ms=now_ms())
        self._under_way[product] = self.publisher.publish(STOCK_CHANGES, str(product), encode(sample))

    def _is_under_way(self, product: ProductId) -> bool:
        sent = self._under_way.get(product)
        return sent is not None and not sent.done()
