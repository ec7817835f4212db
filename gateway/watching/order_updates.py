"""Wakes listeners when the log has a new status of their order. The wake-up carries no state: listeners read the order."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from gateway.watching.tail import Tail
from infra.settings import Settings
from schemas import topics
from schemas.codec import Undecodable, decode
from schemas.events import OrderStatusChanged
from schemas.ids import OrderId
from schemas.order_state import TERMINAL


class News:
    """The wake-ups of one listener. `terminal`: a terminal status was on the log; `left`: the listener has to go."""

    __slots__ = ("_event", "left", "terminal")

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.terminal = False
        self.left = False

    def leave(self) -> None:
        self.left = True
        self._event.set()

    def nudge(self, terminal: bool) -> None:
        self.terminal = self.terminal or terminal
        self._event.set()

    async def wait(self, at_most_s: float) -> None:
        """Wait until the next wake-up, at most this long."""
        try:
            async with asyncio.timeout(at_most_s):
                await self._event.wait()
        except TimeoutError:
            return
        self._event.clear()


class OrderUpdates:
    """Tails order-status while there are listeners. It looks up the raw key before it decodes a record."""

    def __init__(self, settings: Settings) -> None:
        self._listeners: dict[bytes, set[News]] = {}
        self._tail = Tail(settings, topics.ORDER_STATUS, self._take, self._nudge_all)
        self.closed = False

    @contextmanager
    def listen(self, order_id: OrderId) -> Iterator[News]:
        key, news = order_id.encode(), News()
        self._listeners.setdefault(key, set()).add(news)
        self._tail.join()
        try:
            yield news
        finally:
            self._tail.leave()
            listeners = self._listeners[key]
            listeners.discard(news)
            if not listeners:
                del self._listeners[key]

    def drain(self) -> None:
        """Wake all listeners: waiting requests answer now."""
        self.closed = True
        self._nudge_all()

    async def close(self) -> None:
        await self._tail.close()

    def _take(self, key: bytes | None, value: bytes | None) -> None:
        listeners = self._listeners.get(key or b"")
        if not listeners:
            return
        try:
            event = decode(value)
        except Undecodable:
            return  # the projector sends it to the dead letters
        for news in listeners:
            news.nudge(isinstance(event, OrderStatusChanged) and event.status in TERMINAL)

    def _nudge_all(self) -> None:
        for listeners in self._listeners.values():
            for news in listeners:
                news.nudge(False)
