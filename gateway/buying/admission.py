"""Refusals that need no request to Redis: the worker is overloaded, the user buys too fast, or the product is known to be
sold out."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from cachetools import FIFOCache

from schemas.ids import ProductId, UserId

TRACKED = 100_000  # users, or addresses
SOLD_OUT_FOR_S = 1.0
PRODUCTS_TRACKED = 10_000
NO_QUANTITY = 2**31  # above every valid quantity
UNDER_WAY = 150  # purchases that a worker answers within about 50 ms
STANDING_S = 0.3
SHEDDING_S = 1.0


class Overload(Exception):
    """The worker has a standing queue."""


class UnderWay:
    """The purchases in progress in a worker. It serves the queue of a burst, and refuses purchases when a queue stands.

    Above UNDER_WAY, purchases are still admitted for STANDING_S: a crowd that clicks at the same moment is served late, not
    refused. If the queue is still there, more arrives than can be served, and only a refusal is quick. Then purchases are
    refused until none had to be refused for SHEDDING_S. The idea is that of CoDel (Nichols and Jacobson, 2012).
    """

    def __init__(self) -> None:
        self.count = 0
        self._standing_since: float | None = None
        self._shedding_until = 0.0

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Raises Overload if the purchase is not admitted."""
        if self.count < UNDER_WAY:
            self._standing_since = None
        elif self._stands(time.monotonic()):
            raise Overload
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1

    def _stands(self, now: float) -> bool:
        if self._standing_since is None:
            self._standing_since = now
        if now < self._shedding_until or now - self._standing_since > STANDING_S:
            self._shedding_until = now + SHEDDING_S
            return True
        return False


class RateLimit:
    """A token bucket per user or address: a burst of `per_second`, refilled evenly. A dropped bucket starts full again."""

    def __init__(self, per_second: int) -> None:
        self._per_second = float(per_second)
        self._buckets: FIFOCache[UserId | str, list[float]] = FIFOCache(TRACKED)

    def take(self, who: UserId | str) -> bool:
        now = time.monotonic()
        bucket = self._buckets.get(who)
        if bucket is None:
            self._buckets[who] = [self._per_second - 1.0, now]
            return True
        left = min(self._per_second, bucket[0] + (now - bucket[1]) * self._per_second)
        bucket[1] = now
        if left < 1.0:
            bucket[0] = left
            return False
        bucket[0] = left - 1.0
        return True


class _SoldOut(NamedTuple):
    epoch: int
    version: int
    quantity: int
    until: float


class SoldOutMemory:
    """The last "sold out" of Redis per product. It holds for a second, for quantities of at least the refused one; only a
    newer (epoch, version) replaces it. It must not answer a request with an Idempotency-Key: the key comes first."""

    def __init__(self) -> None:
        self._products: FIFOCache[ProductId, _SoldOut] = FIFOCache(PRODUCTS_TRACKED)

    def covers(self, product: ProductId, quantity: int) -> bool:
        known = self._products.get(product)
        return known is not None and quantity >= known.quantity and time.monotonic() < known.until

    def refused(self, product: ProductId, quantity: int, epoch: int, version: int, asked_at: float) -> None:
        """`asked_at` (monotonic) is the time of the request to Redis: the answer is not older."""
        known = self._products.get(product)
        if known is not None:
            if (epoch, version) < (known.epoch, known.version):
                return
            if (epoch, version) == (known.epoch, known.version):
                quantity = min(quantity, known.quantity)
        self._products[product] = _SoldOut(epoch, version, quantity, asked_at + SOLD_OUT_FOR_S)

    def accepted(self, product: ProductId, epoch: int, version: int) -> None:
        """Units were reserved under this version, so refusals of older versions no longer count, even late ones."""
        known = self._products.get(product)
        if known is None or (epoch, version) > (known.epoch, known.version):
            self._products[product] = _SoldOut(epoch, version, NO_QUANTITY, 0.0)
