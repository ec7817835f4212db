"""A HTTP/1.1 client for load generators: keep-alive connections, a few tens of µs per request.

Every failure says whether the request may have reached the server: `Unreachable` was not sent, `NoAnswer` may have been.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple, cast
from urllib.parse import urlsplit

IDLE_MAX_S = 4.0  # well below the server's keep-alive, so that no request meets a closing connection
CONNECT_TIMEOUT_S = 5.0
HEAD_END = b"\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


class Unreachable(Exception):
    """No connection could be made: the request was never sent."""


class NoAnswer(Exception):
    """The request was sent, but no complete answer came; `args[0]` is `timeout`, `reset` or `unreadable`."""


class Reply(NamedTuple):
    """A complete answer; `head` is the raw status line and headers."""

    status: int
    head: bytes
    body: bytes

    def header(self, name: bytes) -> bytes | None:
        """The value of a header; `name` is in lower case."""
        at = self.head.lower().find(b"\r\n" + name + b":")
        if at < 0:
            return None
        start = at + len(name) + 3
        end = self.head.find(b"\r\n", start)
        return self.head[start : end if end >= 0 else None].strip()


class Connection(asyncio.Protocol):
    """One connection with at most one request at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._waiter: asyncio.Future[Reply] | None = None
        self._idle_since = self._loop.time()

    @property
    def usable(self) -> bool:
        return (
            self._transport is not None
            and not self._transport.is_closing()
            and self._loop.time() - self._idle_since < IDLE_MAX_S
        )

    async def ask(self, request: bytes, timeout_s: float) -> Reply:
        """Raises NoAnswer, after closing the connection."""
        assert self._transport is not None
        assert self._waiter is None, "one request at a time"
        waiter: asyncio.Future[Reply] = self._loop.create_future()
        self._waiter = waiter
        timer = self._loop.call_later(timeout_s, self._give_up, NoAnswer("timeout"))
        self._transport.write(request)
        try:
            return await waiter
        finally:
            timer.cancel()
            if self._waiter is not None:  # cancelled: a late answer must not be taken for that of the next request
                self._give_up(NoAnswer("cancelled"))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its bases

    def connection_lost(self, exc: Exception | None) -> None:
        self._give_up(NoAnswer("reset"))

    def data_received(self, data: bytes) -> None:
        self._received = received = self._received + data if self._received else data
        try:
            reply = parse(received)
        except ValueError:
            self._give_up(NoAnswer("unreadable"))
            return
        if reply is None:
            return
        self._received = b""
        self._idle_since = self._loop.time()
        if (reply.header(b"connection") or b"").lower() == b"close":
            self.close()
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(reply)

    def _give_up(self, why: NoAnswer) -> None:
        self.close()
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_exception(why)


def parse(received: bytes) -> Reply | None:
    """The answer, or None while it is incomplete. Raises ValueError if it is not an answer."""
    end = received.find(HEAD_END)
    if end < 0:
        return None
    if not received.startswith(b"HTTP/1."):
        raise ValueError("not HTTP/1.x")
    head, body = received[:end], received[end + len(HEAD_END) :]
    reply = Reply(int(head[9:12]), head, body)
    length = reply.header(b"content-length")
    if length is not None:
        missing = int(length) - len(body)
        if missing < 0:
            raise ValueError("more than was announced")
        return reply if missing == 0 else None
    if reply.header(b"transfer-encoding") is not None:
        return reply._replace(body=_join_chunks(body)) if body.endswith(LAST_CHUNK) else None
    return reply


def _join_chunks(body: bytes) -> bytes:
    joined = b""
    while True:
        size_line, _, rest = body.partition(b"\r\n")
        size = int(size_line, 16)
        if size == 0:
            return joined
        joined, body = joined + rest[:size], rest[size + 2 :]


class Connections:
    """Keep-alive connections to one origin, at most `limit`; when all are busy, further requests wait."""

    def __init__(self, base_url: str, limit: int) -> None:
        parts = urlsplit(base_url)
        self.host = parts.hostname or "127.0.0.1"
        self.port = parts.port or 80
        self._idle: deque[Connection] = (
            deque()
        )  # the longest idle one goes first, so that all servers behind it get requests
        self._free = asyncio.Semaphore(limit)

    async def ask(self, request: bytes, timeout_s: float) -> Reply:
        """Raises Unreachable or NoAnswer."""
        async with self._lend() as connection:
            return await connection.ask(request, timeout_s)

    @asynccontextmanager
    async def _lend(self) -> AsyncIterator[Connection]:
        async with self._free:
            connection = self._find_idle() or await self._connect()
            try:
                yield connection
            finally:
                if connection.usable:
                    self._idle.append(connection)
                else:
                    connection.close()

    def _find_idle(self) -> Connection | None:
        while self._idle:
            connection = self._idle.popleft()
            if connection.usable:
                return connection
            connection.close()
        return None

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, connection = await loop.create_connection(Connection, self.host, self.port)
        except (OSError, TimeoutError) as error:
            raise Unreachable(str(error)) from None
        return connection

    def close(self) -> None:
        while self._idle:
            self._idle.popleft().close()
