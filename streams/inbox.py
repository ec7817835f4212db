"""What has arrived, handed over as the next batch: small when idle, large when busy."""

import asyncio
from collections import deque
from typing import Generic, TypeVar

from infra.pace import Pace

T = TypeVar("T")
BUSY_PER_S = 300.0  # orders of a stage: from so many on a batch waits for more, because ten cost little more than one
GATHER_S = 0.06
ARRIVAL_S = 0.01  # Faust hands over what one fetch brought a few records at a time


class Inbox(Generic[T]):
    """One reader waits, many writers put; both on one event loop.

    While as many come as `pace` calls busy, the reader waits for more; otherwise it never waits for company.
    """

    def __init__(self, pace: Pace | None = None) -> None:
        self._items: deque[T] = deque()
        self._arrived = asyncio.Event()
        self._pace = pace or Pace()

    def put(self, item: T) -> None:
        self._items.append(item)
        self._arrived.set()

    async def take(self, limit: int) -> list[T]:
        """Everything there is, oldest first, at least one and at most `limit`."""
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
