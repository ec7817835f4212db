"""A queue that hands over everything that has arrived as one batch: small when idle, large when busy."""

import asyncio
from collections import deque
from typing import Generic, TypeVar

from infra.pace import Pace

T = TypeVar("T")
BUSY_PER_S = 300.0  # orders of a stage: above this rate a batch waits briefly: ten records cost little more than one
GATHER_S = 0.06
ARRIVAL_S = 0.01  # Faust hands over the records of one fetch a few at a time


class Inbox(Generic[T]):
    """One reader waits, many writers put; all on one event loop.

    While `pace` is busy, the reader waits briefly for more items; otherwise it takes them at once.
    """

    def __init__(self, pace: Pace | None = None) -> None:
        self._items: deque[T] = deque()
        self._arrived = asyncio.Event()
        self._pace = pace or Pace()

    def put(self, item: T) -> None:
        self._items.append(item)
        self._arrived.set()

    async def take(self, limit: int) -> list[T]:
        """All items, oldest first: at least one, at most `limit`."""
        while not self._items:
            self._arrived.clear()
            await self._arrived.wait()
        if self._pace.busy and len(self._items) < limit:
            await asyncio.sleep(self._pace.wait_s)
        taken = [self._items.popleft() for _ in range(min(limit, len(self._items)))]
        self._pace.add(len(taken), asyncio.get_running_loop().time())
        return taken

    def __len__(self) -> int:
        return len(self._items)
