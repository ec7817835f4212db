"""One client's event stream: frames in, bytes on its socket out, never a wait for a slow reader.

Frames are written to the transport as they are, encoded once for all their readers. A reader whose buffer is not empty
gets nothing more until it has read; after STALLED_S it is cut.
"""

import asyncio
import random
import socket
from http import HTTPStatus

from aiohttp import web

from gateway.http.server import HttpProtocol
from infra.metrics.definitions import GATEWAY_STREAMS_CUT

STALLED_S = 8.0
# The kernel's own cut: whoever acknowledges nothing for so long, or keeps his window closed, is gone. A silent connection is
# asked every few seconds; where a frame comes between (it starts the time anew) it is still less than 10 s.
UNACKNOWLEDGED_MS = 5_000
ASK_AFTER_S, ASK_EVERY_S = 3, 1
SEND_BUFFER_BYTES = 32 * 1024
KEEP_ALIVE_EVERY_S = 15.0
_streams_cut = GATEWAY_STREAMS_CUT.make()
HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
    "HttpProtocol": "close",  # as it does in the end: a client would send its next request into the closing
    "Server": "thrones",
}


def last_event_id(request: web.Request) -> str | None:
    """What a client that comes back has seen last (HTML Living Standard, server-sent events: Last-Event-ID)."""
    return request.headers.get("Last-Event-ID")


def end_displaced(request: web.Request) -> None:
    """Another has the place of this stream now; its client comes back after `retry`."""
    if request.transport is not None:
        request.transport.abort()


class Frame:
    """One event's bytes, with and without the chunk framing of HTTP/1.1."""

    __slots__ = ("chunked", "plain")

    def __init__(self, text: str) -> None:
        self.plain = text.encode()
        self.chunked = b"%x\r\n%s\r\n" % (len(self.plain), self.plain)


# No blank line: it would end an event, and some clients pass on an empty one.
KEEP_ALIVE = Frame(": keep-alive\n")


class EventStream:
    """An open stream. `closed` ends when the client has gone, was cut, or `finish` was called."""

    __slots__ = ("_chunked", "_cut", "_response", "_stalled_since", "_transport", "closed")

    def __init__(self, response: web.StreamResponse, transport: asyncio.Transport, chunked: bool) -> None:
        self._response = response
        self._transport = transport
        self._chunked = chunked
        self._stalled_since: float | None = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._cut = False

    @classmethod
    async def open(cls, request: web.Request) -> "EventStream":
        response = web.StreamResponse(status=HTTPStatus.OK, headers=HEADERS)
        await response.prepare(request)
        transport = request.transport
        connection = request.protocol
        if transport is None or not isinstance(connection, HttpProtocol):
            raise ConnectionResetError("the client has gone")
        _limit(transport.get_extra_info("socket"))
        stream = cls(response, transport, response.headers.get("Transfer-Encoding") == "chunked")
        connection.on_lost = stream._lost
        # Clients that were closed together come back apart. The line belongs to the first event, which follows.
        stream.push(Frame(f"retry: {random.randint(1_000, 5_000)}\n"))
        return stream

    def push(self, frame: Frame) -> bool:
        """Write a frame, or say False: the client has not read the last one yet."""
        transport = self._transport
        if transport.is_closing():
            self.finish()
            return False
        if transport.get_write_buffer_size():
            self._stalled()
            return False
        self._stalled_since = None
        transport.write(frame.chunked if self._chunked else frame.plain)
        return True

    def finish(self) -> None:
        if not self.closed.done():
            self.closed.set_result(None)

    async def end(self) -> web.StreamResponse:
        """Close it properly where the client is still there."""
        if not self._transport.is_closing():
            self._response.force_close()
            try:
                async with asyncio.timeout(1.0):
                    await self._response.write_eof()
            except TimeoutError:
                self._cut_off()
            except OSError:
                self._transport.abort()
        return self._response

    def _lost(self, error: BaseException | None) -> None:
        """The kernel gives up a client that acknowledges nothing with a timeout; who goes of his own accord ends otherwise."""
        if isinstance(error, TimeoutError):
            self._count()
        self.finish()

    def _cut_off(self) -> None:
        self._count()
        self._transport.abort()
        self.finish()

    def _count(self) -> None:
        if not self._cut:
            self._cut = True
            _streams_cut.inc()

    def _stalled(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._stalled_since is None:
            self._stalled_since = now
        elif now - self._stalled_since > STALLED_S:
            self._cut_off()


def _limit(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, ASK_AFTER_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, ASK_EVERY_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)
