"""GET /sse/order/{id}: sends the states of an order to its owner, from the present one to the terminal one."""

import asyncio

import orjson
from aiohttp import web

from gateway.http.bodies import iso_ms
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
from gateway.watching.order_status import FIRST_POLL_S, POLL_INTERVAL_S, OrderReader
from gateway.watching.order_updates import News, OrderUpdates
from gateway.watching.tickets import Tickets
from infra.metrics.definitions import GATEWAY_STREAMS
from sale.books.read_model import OrderView
from schemas.order_state import Status, replaces

STREAMS_MAX = 10_000  # per worker

_streams = GATEWAY_STREAMS.make()


class OrderStream:
    def __init__(self, tickets: Tickets, reader: OrderReader, updates: OrderUpdates) -> None:
        self._tickets = tickets
        self._reader = reader
        self._updates = updates
        self._open = Shares(STREAMS_MAX)

    async def stream(self, request: web.Request) -> web.StreamResponse:
        owner = await self._tickets.user_of(request)
        view = await self._reader.of_owner(request.match_info["id"], owner)
        seen = _seen(request)
        if view.terminal and seen is view.status:
            return web.Response(status=204, headers={"Server": "thrones"})  # tells an EventSource not to reconnect
        try:
            with self._open.hold(owner, lambda: end_displaced(request)):
                return await self._show(request, view, seen)
        except SharesFull:
            raise Problem("busy") from None

    async def _show(self, request: web.Request, view: OrderView, seen: Status | None) -> web.StreamResponse:
        _streams.inc()
        try:
            stream = await EventStream.open(request)
            with self._updates.listen(view.id) as news:
                await self._follow(stream, view, news, seen)
            return await stream.end()
        finally:
            _streams.dec()

    async def _follow(self, stream: EventStream, view: OrderView, news: News, shown: Status | None) -> None:
        """Follow the order until the terminal state is sent; `shown` is the state that the client has seen."""
        loop = asyncio.get_running_loop()
        alive_at = loop.time()
        while not stream.closed.done() and not self._updates.closed:
            if (shown is None or replaces(view.status, shown)) and stream.push(_frame(view)):
                shown = view.status
                alive_at = loop.time()
                if view.terminal:
                    return
            elif loop.time() - alive_at > KEEP_ALIVE_INTERVAL_S:
                stream.push(KEEP_ALIVE)
                alive_at = loop.time()
            await self._next_read(stream, news)
            view = await self._reader.reread(view)

    async def _next_read(self, stream: EventStream, news: News) -> None:
        if news.terminal:
            await asyncio.sleep(FIRST_POLL_S)
            return
        look = asyncio.ensure_future(news.wait(POLL_INTERVAL_S))
        await asyncio.wait((look, stream.closed), return_when=asyncio.FIRST_COMPLETED)
        look.cancel()


def _frame(view: OrderView) -> Frame:
    data = orjson.dumps({"orderId": view.id, "status": view.status, "updatedAt": iso_ms(view.updated_at_ms)})
    return Frame(f"event: status\nid: {view.status}\ndata: {data.decode()}\n\n")


def _seen(request: web.Request) -> Status | None:
    """The last state that a reconnecting client has seen; None for a new client, and for an unknown id."""
    text = last_event_id(request)
    return Status(text) if text in set(Status) else None
