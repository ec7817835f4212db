"""An HTTP/1.1 client for one peer over keep-alive connections, one request at a time per connection (RFC 9112).

It is for a peer that gets a thousand requests a second: a general client costs more CPU than the rest of an order
(docs/decisions/0008-charging-client.md). httptools parses; no redirects, no decompression, answers are bounded.
"""

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import httptools
from yarl import URL

HEAD_MAX_BYTES = 8 * 1024


class NotConnected(Exception):
    """No connection was made, so nothing was sent."""


class BrokenOff(Exception):
    """The connection ended before the answer was complete."""


class NotHttp(BrokenOff):
    """The peer sent something else than HTTP."""


class TooLarge(Exception):
    """The answer exceeds the size limit; the rest was not read."""


@dataclass(frozen=True, slots=True)
class Answer:
    """`headers` by name in lower case; of a repeated one the last."""

    status: int
    headers: Mapping[bytes, bytes]
    body: bytes

    def header(self, name: str) -> str | None:
        value = self.headers.get(name.encode())
        return None if value is None else value.decode("latin-1")


class KeepAliveClient:
    """Requests to one origin. There are as many connections as concurrent requests; the most recently used one goes first.

    `spread`: the one idle for longest goes first, so that all servers behind a shared port get requests.
    """

    def __init__(
        self, url: URL, *, connect_timeout_s: float, idle_s: float, body_max_bytes: int, spread: bool = False
    ) -> None:
        if url.host is None or url.port is None:
            raise ValueError(f"{url} names no host")
        self._host, self._port = url.host, url.port
        self._ssl = ssl.create_default_context() if url.scheme == "https" else None
        self._connect_timeout_s = connect_timeout_s
        self._idle_s = idle_s
        self._body_max_bytes = body_max_bytes
        self.host = url.host_port_subcomponent  # an IPv6 address in brackets; never the user info of the URL
        self._idle: deque[_Connection] = deque()
        self._next_idle = self._idle.popleft if spread else self._idle.pop
        self._open: set[_Connection] = set()

    async def send(self, request: bytes, timeout_s: float | None = None) -> Answer:
        """`request` is complete, head and body. Raises NotConnected, BrokenOff or TooLarge.

        Raises TimeoutError `timeout_s` after the request was sent. Cancelling or a timeout closes the connection: a late
        answer must not be taken for that of the next request.
        """
        connection = self._kept() or await self._connect()
        try:
            if timeout_s is None:
                answer = await connection.ask(request)
            else:
                async with asyncio.timeout(timeout_s):
                    answer = await connection.ask(request)
        except BaseException:
            connection.abort()
            raise
        if connection.usable:
            connection.idle_since = time.monotonic()
            self._idle.append(connection)
        return answer

    def close(self) -> None:
        for connection in list(self._open):
            connection.abort()

    def _kept(self) -> "_Connection | None":
        while self._idle:
            connection = self._next_idle()
            if connection.usable and time.monotonic() - connection.idle_since < self._idle_s:
                return connection
            connection.abort()
        return None

    async def _connect(self) -> "_Connection":
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: _Connection(self._body_max_bytes, self._open), self._host, self._port, ssl=self._ssl
                )
        except (OSError, TimeoutError) as error:
            raise NotConnected(f"{type(error).__name__}: {error}".rstrip(": ")) from error
        return connection


class KeepAlivePost:
    """POSTs to one URL. `client` is for its origin; `headers` are those of every request."""

    def __init__(self, client: KeepAliveClient, url: URL, headers: Mapping[str, str]) -> None:
        lines = (f"POST {url.raw_path_qs} HTTP/1.1", f"Host: {client.host}", *(f"{k}: {v}" for k, v in headers.items()))
        self._head = "".join(f"{line}\r\n" for line in lines)
        self._client = client

    async def ask(self, body: bytes, headers: str) -> Answer:
        """`headers` are complete lines, each with its CRLF. Raises like `KeepAliveClient.send`."""
        head = f"{self._head}{headers}Content-Length: {len(body)}\r\n\r\n"
        return await self._client.send(head.encode() + body)


class _Connection(asyncio.Protocol):
    """httptools calls the methods named on_..."""

    def __init__(self, body_max_bytes: int, opened: "set[_Connection]") -> None:
        self._body_max_bytes = body_max_bytes
        self._opened = opened
        self._answer: asyncio.Future[Answer] | None = None
        self.usable = True
        self.idle_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's derives from nothing
        self._opened.add(self)

    def ask(self, request: bytes) -> "asyncio.Future[Answer]":
        self._parser = httptools.HttpResponseParser(self)
        self._received = self._body_bytes = 0
        self._body: list[bytes] = []
        self._headers: dict[bytes, bytes] = {}
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        if self._answer is None:
            self.abort()  # no request is open
        elif self._received > 2 * HEAD_MAX_BYTES + self._body_max_bytes:  # on_message_complete checks the exact limits
            self._fail(TooLarge())
        else:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserError as error:
                self._fail(NotHttp(type(error).__name__))

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        self._opened.discard(self)
        self._fail(BrokenOff(type(exc).__name__ if exc else "closed"))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        self._body.append(body)
        self._body_bytes += len(body)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:  # an interim answer; the final one follows
            self._headers = {}
            return
        if self._answer is None:  # a second answer to the same request
            self.abort()
            return
        if self._body_bytes > self._body_max_bytes or self._received - self._body_bytes > HEAD_MAX_BYTES:
            self._fail(TooLarge())
            return
        if not self._parser.should_keep_alive():
            self.usable = False
            self._transport.close()
        answer, self._answer = self._answer, None
        if not answer.done():
            answer.set_result(Answer(status, self._headers, b"".join(self._body)))

    def abort(self) -> None:
        self.usable = False
        self._transport.abort()

    def _fail(self, error: Exception) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            self.abort()
            if not answer.done():
                answer.set_exception(error)
