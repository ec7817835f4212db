"""The due list of a product: the time of the relay's next check of each entry, by Redis' clock (ms since the epoch).

Scripts add an order with its entry and remove it with its entry; this module moves the checks in between.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from itertools import chain, islice

from infra.redis.client import Redis
from sale.books import keys
from schemas.ids import OrderId, ProductId, parse_order_id

MAX_CHECK_DELAY_MS = 300_000  # the longest delay of a check: a later one was dated before the clock was set back
SCAN = 1_000  # entries per scan


class DueList:
    """Raises RedisError."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def products_with_due(self, products: Sequence[ProductId], now_ms: int) -> list[ProductId]:
        ranges = due_ranges(now_ms)
        counts = await self._redis.replies(
            [("ZCOUNT", keys.due(product), *range_) for product in products for range_ in ranges]
        )
        return [product for product, *due in zip(products, counts[::2], counts[1::2], strict=True) if any(due)]

    async def due(self, product: ProductId, now_ms: int, most: int) -> list[OrderId]:
        """The orders to check now, oldest first."""
        commands = [("ZRANGEBYSCORE", keys.due(product), *range_, "LIMIT", 0, most) for range_ in due_ranges(now_ms)]
        found = chain.from_iterable(await self._redis.replies(commands))
        return [OrderId(id_.decode()) for id_ in islice(found, most)]

    async def postpone(self, product: ProductId, at_ms: Mapping[OrderId, int]) -> None:
        """Postpone the checks of orders that are still on the list."""
        if at_ms:
            await self._redis.zadd(keys.due(product), {str(id_): at for id_, at in at_ms.items()}, xx=True)

    async def bring_forward(self, product: ProductId, at_ms: Mapping[OrderId, int]) -> None:
        """Bring forward the checks of orders that are still on the list."""
        if at_ms:
            await self._redis.zadd(keys.due(product), {str(id_): at for id_, at in at_ms.items()}, xx=True, lt=True)

    async def forget(self, product: ProductId, ids: Sequence[OrderId]) -> None:
        if ids:
            await self._redis.zrem(keys.due(product), *ids)

    async def length(self, product: ProductId) -> int:
        return int(await self._redis.zcard(keys.due(product)))

    async def restore(self, product: ProductId) -> None:
        """Add entries that are missing on the list, which happens only if Redis was changed by hand."""
        if await self._redis.hlen(keys.held(product)) == await self.length(product):
            return
        async for ids in self.held_ids(product):
            if ids:
                await self._redis.zadd(keys.due(product), dict.fromkeys(ids, 0), nx=True)

    async def held_ids(self, product: ProductId) -> AsyncIterator[list[OrderId]]:
        """The orders that have an entry, in chunks: 100,000 at once would block Redis and Postgres."""
        cursor = 0
        while True:
            cursor, found = await self._redis.hscan(keys.held(product), cursor, count=SCAN)
            yield [id_ for key in found if (id_ := parse_order_id(key.decode() if isinstance(key, bytes) else key))]
            if not cursor:
                return


def due_ranges(now_ms: int) -> tuple[tuple[int, int], tuple[int, str]]:
    """The scores of due checks: the past, and times that are possible only if Redis' clock was set back since."""
    return (0, now_ms), (now_ms + MAX_CHECK_DELAY_MS + 1, "+inf")
