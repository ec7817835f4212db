"""One client's event stream: writes frames to its socket, and never waits for a slow reader.

A frame is encoded once for all readers. A reader whose send buffer is not empty gets no further frame until it has read;
after STALLED_S it is disconnected.
"""

import asyncio
import random
import socket
from http import HTTPStatus

from aiohttp import web

from gateway.http.server import HttpProtocol
from infra.metrics.definitions import GATEWAY_STREAMS_CUT

STALLED_S = 8.0
# The kernel's limit: it drops a peer that acknowledges nothing for so long, or keeps its window closed. It probes a silent
# connection every few seconds. A frame in between restarts the time; even then it takes less than 10 s.
UNACKNOWLEDGED_MS = 5_000
PROBE_AFTER_S, PROBE_INTERVAL_S = 3, 1
SEND_BUFFER_BYTES = 32 * 1024
KEEP_ALIVE_INTERVAL_S = 15.0
_streams_cut = GATEWAY_STREAMS_CUT.make()
HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
    "Connection": "close",  # true at the end of a stream: else a client would send its next request while we close
    "Server": "thrones",
}


def last_event_id(request: web.Request) -> str | None:
    """The last event that a reconnecting client has seen (HTML Living Standard, server-sent events: Last-Event-ID)."""
    return request.headers.get("Last-Event-ID")


def end_displaced(request: web.Request) -> None:
    """End a stream that was displaced by another one; its client reconnects after `retry`."""
    if request.transport is not None:
        request.transport.abort()


class Frame:
    """The bytes of one event, with and without HTTP/1.1 chunk framing."""

    __slots__ = ("chunked", "plain")

    def __init__(self, text: str) -> None:
        self.plain = text.encode()
        self.chunked = b"%x\r\n%s\r\n" % (len(self.plain), self.plain)


# Without a blank line: that would end an event, and some clients deliver an empty one.
KEEP_ALIVE = Frame(": keep-alive\n")


class EventStream:
    """An open stream. `closed` is done when the client has gone, was disconnected, or `finish` was called."""

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
        # Random, so that clients closed together reconnect at different times. It belongs to the first event, which follows.
        stream.push(Frame(f"retry: {random.randint(1_000, 5_000)}\n"))
        return stream

    def push(self, frame: Frame) -> bool:
        """Write a frame. Returns False if the client has not read the last one yet."""
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
        """End the stream properly if the client is still there."""
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
        """Count a client that the kernel dropped with a timeout as cut off; one that closes itself has another error."""
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
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_AFTER_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)
