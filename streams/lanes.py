"""A queue per product: the items of a product that have gathered form its next batch, and no product waits for another.

Work that needs Redis goes through here. While Redis is down, work that needs only Postgres and the log continues.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Generic, TypeVar

from schemas.ids import ProductId

T = TypeVar("T")
PATIENCE_S = 1.0  # books that are in force answer within milliseconds


class Lanes(Generic[T]):
    """One task per product while it has work. An error raised by `work` ends the process."""

    def __init__(self, work: Callable[[list[T]], Awaitable[None]], limit: int) -> None:
        self._work = work
        self._limit = limit
        self._waiting: dict[ProductId, list[T]] = {}

    async def put(self, group: asyncio.TaskGroup, items: Mapping[ProductId, Sequence[T]]) -> None:
        """Start the work, and give idle lanes a moment to finish it: items that arrive meanwhile form one batch."""
        begun = []
        for product, of_product in items.items():
            if product in self._waiting:
                self._waiting[product] += of_product
            else:
                self._waiting[product] = list(of_product)
                begun.append(group.create_task(self._run(product)))
        if begun:
            await asyncio.wait(begun, timeout=PATIENCE_S)

    async def _run(self, product: ProductId) -> None:
        while waiting := self._waiting[product]:
            self._waiting[product] = waiting[self._limit :]
            await self._work(waiting[: self._limit])
        del self._waiting[product]


def by_product(items: Iterable[T], product_of: Callable[[T], int]) -> dict[ProductId, list[T]]:
    sorted_: dict[ProductId, list[T]] = {}
    for item in items:
        sorted_.setdefault(ProductId(product_of(item)), []).append(item)
    return sorted_
