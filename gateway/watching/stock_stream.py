"""GET /sse/stock/{id}: sends the newest stock of a product to all its watchers, a snapshot first.

Each worker has one hub. While it has watchers, it tails `stock-changes` from the end and reads Redis every 2 s. A value that
is newer by (epoch, version) is encoded once and offered to all. A slow reader skips values; it never delays the others.
"""

import asyncio
import re
from contextlib import suppress
from dataclasses import dataclass, field

from aiohttp import web

from gateway.buying.catalogue import Catalogue, parse_product_id
from gateway.http.addresses import Addresses
from gateway.http.event_stream import (
    KEEP_ALIVE,
    KEEP_ALIVE_INTERVAL_S,
    EventStream,
    Frame,
    end_displaced,
    last_event_id,
)
from gateway.http.problems import Problem
from gateway.http.shares import Shares, SharesFull
from gateway.watching.tail import Tail
from infra.metrics.definitions import GATEWAY_STREAMS
from infra.redis.client import RedisError
from infra.settings import Settings
from sale.books.books import Books
from schemas import topics
from schemas.codec import Undecodable, decode
from schemas.events import StockChanged
from schemas.ids import ProductId

STREAMS_MAX = 10_000  # per worker
READ_INTERVAL_S = 2.0
MIN_INTERVAL_S = 0.05  # of values that come faster only the newest is sent
TURN = 500  # writes before other tasks get the event loop

_streams = GATEWAY_STREAMS.make()

Version = tuple[int, int]
NEVER: Version = (-1, -1)
EVENT_ID = re.compile(r"(\d{1,15})\.(\d{1,15})", re.ASCII)


@dataclass(slots=True, eq=False)
class _Watcher:
    stream: EventStream
    sent: Version = NEVER


@dataclass(slots=True)
class _Watched:
    """The newest value of a product, and its watchers."""

    watchers: set[_Watcher] = field(default_factory=set)
    version: Version = NEVER
    frame: Frame | None = None


class StockHub:
    """All watchers of a worker. `run` must run beside the server."""

    def __init__(self, settings: Settings, books: Books) -> None:
        self._books = books
        self._products: dict[bytes, _Watched] = {}
        self._tail = Tail(settings, topics.STOCK_CHANGES, self._take, self._read_soon)
        self._news = asyncio.Event()
        self._again = asyncio.Event()
        self.count = 0

    def join(
        self, product: ProductId, stream: EventStream, read: tuple[Version, int], seen: Version = NEVER
    ) -> _Watcher:
        """Add a watcher, which gets the newest value at once: the one `read` for it, or a newer known one.

        A reconnecting watcher that has `seen` the newest value gets the next one. An impossible `seen` is ignored.
        """
        watcher = _Watcher(stream, seen if seen <= read[0] else NEVER)
        watched = self._products.setdefault(str(product).encode(), _Watched())
        if not watched.watchers:
            self._again.set()  # a change since `read` was sent to no watcher
        watched.watchers.add(watcher)
        self._tail.join()
        self.count += 1
        _streams.inc()
        self.offer(product, *read)
        _deliver(watched, watcher)
        return watcher

    def leave(self, product: ProductId, watcher: _Watcher) -> None:
        key = str(product).encode()
        watched = self._products[key]
        watched.watchers.discard(watcher)
        if not watched.watchers:
            del self._products[key]
        self._tail.leave()
        self.count -= 1
        _streams.dec()

    async def read(self, product: ProductId) -> tuple[Version, int] | None:
        """The value in Redis now; None if it has no books of this product. Raises RedisError."""
        [level] = await self._books.levels([product])
        return None if level is None else ((level.epoch, level.version), level.available)

    def offer(self, product: ProductId, version: Version, available: int) -> None:
        """Take a value if it is newer than the known one."""
        watched = self._products.get(str(product).encode())
        if watched is None or version <= watched.version:
            return
        watched.version = version
        epoch, number = version
        watched.frame = Frame(f'id: {epoch}.{number}\ndata: {{"productId":{product},"stock":{available}}}\n\n')
        self._news.set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._spread())
            group.create_task(self._reread())
            group.create_task(self._keep_alive())

    def drain(self) -> None:
        for watched in self._products.values():
            for watcher in watched.watchers:
                watcher.stream.finish()

    async def close(self) -> None:
        await self._tail.close()

    def _take(self, key: bytes | None, value: bytes | None) -> None:
        if key not in self._products:
            return
        with suppress(Undecodable):  # not a stock change: ignore it
            event = decode(value)
            if isinstance(event, StockChanged):
                self.offer(ProductId(event.product_id), (event.epoch, event.version), event.available)

    def _read_soon(self) -> None:
        self._again.set()

    async def _spread(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            await self._deliver_all()
            await asyncio.sleep(MIN_INTERVAL_S)

    async def _deliver_all(self) -> None:
        done = 0
        for watched in list(self._products.values()):
            for watcher in list(watched.watchers):
                _deliver(watched, watcher)
                done += 1
                if done % TURN == 0:
                    await asyncio.sleep(0)

    async def _reread(self) -> None:
        """Every 2 s, and when the tail has found its end: earlier changes are not in the tail."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(READ_INTERVAL_S):
                    await self._again.wait()
            self._again.clear()
            products = [ProductId(int(key)) for key in self._products]
            for product, found in zip(products, await self._read_all(products), strict=True):
                if found is not None and not isinstance(found, BaseException):
                    self.offer(product, *found)
            self._news.set()  # slow readers get the newest value now, or are disconnected

    async def _read_all(self, products: list[ProductId]) -> list[tuple[Version, int] | BaseException | None]:
        return await asyncio.gather(*(self.read(product) for product in products), return_exceptions=True)

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(KEEP_ALIVE_INTERVAL_S)
            for watched in list(self._products.values()):
                for watcher in list(watched.watchers):
                    watcher.stream.push(KEEP_ALIVE)
                await asyncio.sleep(0)


def _deliver(watched: _Watched, watcher: _Watcher) -> None:
    if watched.frame is not None and watcher.sent < watched.version and watcher.stream.push(watched.frame):
        watcher.sent = watched.version


def _seen(request: web.Request) -> Version:
    """The last version that a reconnecting client has seen; NEVER for a new client, and for an unknown id."""
    match = EVENT_ID.fullmatch(last_event_id(request) or "")
    return (int(match[1]), int(match[2])) if match else NEVER


class StockStream:
    """The route."""

    def __init__(self, hub: StockHub, catalogue: Catalogue, addresses: Addresses) -> None:
        self._hub = hub
        self._catalogue = catalogue
        self._addresses = addresses
        self._open = Shares(STREAMS_MAX)

    async def stream(self, request: web.Request) -> web.StreamResponse:
        product = parse_product_id(request.match_info["id"])
        await self._catalogue.find(product)
        try:
            with self._open.hold(self._addresses.of(request), lambda: end_displaced(request)):
                return await self._watch(request, product)
        except SharesFull:
            raise Problem("busy") from None

    async def _watch(self, request: web.Request, product: ProductId) -> web.StreamResponse:
        read = await self._snapshot(product)
        if read is None:
            raise Problem("stock_not_verified")
        stream = await EventStream.open(request)
        watcher = self._hub.join(product, stream, read, _seen(request))
        try:
            await stream.closed
        finally:
            self._hub.leave(product, watcher)
        return await stream.end()

    async def _snapshot(self, product: ProductId) -> tuple[Version, int] | None:
        try:
            return await self._hub.read(product)
        except RedisError:
            raise Problem("unavailable") from None
