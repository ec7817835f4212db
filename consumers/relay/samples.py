"""Publishes stock.changed: one sample of a product's stock whenever it has changed, at most one under way."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from infra.kafka.publisher import Publisher
from sale.books.books import Books, StockLevel
from schemas.clock import now_ms
from schemas.codec import encode
from schemas.events import StockChanged
from schemas.ids import ProductId
from schemas.topics import STOCK_CHANGES

SAMPLE_INTERVAL_S = 0.05


@dataclass(slots=True)
class Sampler:
    """A lost sample does no harm: a later one replaces it."""

    books: Books
    publisher: Publisher
    _published: dict[ProductId, StockLevel] = field(default_factory=dict)
    _under_way: dict[ProductId, "asyncio.Future[None]"] = field(default_factory=dict)

    async def run_once(self, products: Iterable[ProductId]) -> None:
        wanted = [product for product in products if not self._is_under_way(product)]
        for product, level in zip(wanted, await self.books.levels(wanted), strict=True):
            if level is not None and self._published.get(product) != level:
                self._publish(product, level)

    def _publish(self, product: ProductId, level: StockLevel) -> None:
        self._published[product] = level
        sample = StockChanged(
            product_id=product,
            epoch=level.epoch,
            version=level.version,
            available=level.available,
            at_ms=now_ms(),
        )
        self._under_way[product] = self.publisher.publish(STOCK_CHANGES, str(product), encode(sample))

    def _is_under_way(self, product: ProductId) -> bool:
        sent = self._under_way.get(product)
        return sent is not None and not sent.done()
