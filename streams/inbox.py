"""What has arrived, handed over as the next batch: no timers, so a batch is small when idle and large when busy."""

import asyncio
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(Generic[T]):
    """One reader waits, many writers put; both on one event loop."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._arrived = asyncio.Event()

    def put(self, item: T) -> None:
        self._items.append(item)
        self._arrived.set()

    async def take(self, limit: int) -> list[T]:
        """Everything there is, oldest first, at least one and at most `limit`."""
        while not self._items:
            self._arrived.clear()
            await self._arrived.wait()
        return [self._items.popleft() for _ in range(min(limit, len(self._items)))]

    def __len__(self) -> int:
        return len(self._items)
