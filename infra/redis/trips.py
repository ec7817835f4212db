"""Round trips to Redis: many commands in one write and one read (RESP2 pipelining), with hiredis packing and parsing.

It stands beside redis-py, whose pipelines cost more CPU than the reservations in them
(docs/decisions/0006-script-pipelining.md). A connection has one trip at a time. A connection with a missing reply is never
used again, so a reply cannot reach the wrong caller. No command is sent twice.
"""

import asyncio
import ssl
from collections.abc import Sequence
from typing import Any, Protocol, cast

import hiredis
from redis.asyncio.connection import parse_url
from redis.exceptions import (
    BusyLoadingError,
    InvalidResponse,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

Argument = str | bytes | int
Command = tuple[Argument, ...]
ERRORS: dict[str, type[RedisError]] = {
    "NOSCRIPT": NoScriptError,
    "LOADING": BusyLoadingError,
    "OOM": OutOfMemoryError,
    "READONLY": ReadOnlyError,
}


class CommandSource(Protocol):
    """Where replies come from: Redis itself, or a pipeliner whose trips others share."""

    async def replies(self, commands: Sequence[Command]) -> list[Any]:
        """In order. Raises the first error reply, and RedisError where there is none."""
        ...


class NotSent(RedisConnectionError):
    """No connection could be made, so the commands definitely did not run."""


class Trips:
    """Round trips to the server of a redis:// or rediss:// URL. Overlapping trips open new connections, which are kept."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._at = parse_url(url)
        self._tls = ssl.create_default_context() if url.startswith("rediss:") else None
        self._timeout_s = timeout_s
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        """Replies in order; an error reply is a RedisError as a value. Raises NotSent, or RedisError: outcome unknown."""
        connection = self._idle.pop() if self._idle else await self._connect()
        replies = await connection.ask(commands, self._timeout_s)
        if connection in self._open:  # else it was lost right after its replies
            self._idle.append(connection)
        return replies

    def close(self) -> None:
        for connection in list(self._open):
            connection.abort()

    async def _connect(self) -> "_Connection":
        try:
            async with asyncio.timeout(self._timeout_s):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: _Connection(self._idle, self._open),
                    self._at.get("host", "localhost"),
                    int(self._at.get("port", 6379)),
                    ssl=self._tls,
                )
                await self._greet(connection)
        except (OSError, TimeoutError, RedisError) as error:
            raise NotSent(str(error) or type(error).__name__) from error
        return connection

    async def _greet(self, connection: "_Connection") -> None:
        """Log in and select the database. If the server refuses, the connection is closed."""
        greetings = self._greetings()
        try:
            if greetings:
                raise_first_error(await connection.ask(greetings, self._timeout_s))
        except RedisError:
            connection.abort()
            raise

    def _greetings(self) -> list[Command]:
        commands: list[Command] = []
        if password := self._at.get("password"):
            user = self._at.get("username")
            commands.append(("AUTH", user, password) if user else ("AUTH", password))
        if database := int(self._at.get("db") or 0):
            commands.append(("SELECT", database))
        return commands


def raise_first_error(replies: list[Any]) -> None:
    for reply in replies:
        if isinstance(reply, RedisError):
            raise reply


def _error(text: str) -> RedisError:
    return ERRORS.get(text.partition(" ")[0], ResponseError)(text)


class _Connection(asyncio.Protocol):
    """`idle` is the list from which it is taken. A lost connection removes itself from `idle` and `opened`."""

    def __init__(self, idle: "list[_Connection]", opened: "set[_Connection]") -> None:
        self._idle = idle
        self._opened = opened
        self._reader = hiredis.Reader(protocolError=InvalidResponse, replyError=_error)
        self._replies: list[Any] = []
        self._expected = 0
        self._answer: asyncio.Future[list[Any]] | None = None

    async def ask(self, commands: Sequence[Command], timeout_s: float) -> list[Any]:
        loop = asyncio.get_running_loop()
        self._replies, self._expected = [], len(commands)
        self._answer = loop.create_future()
        deadline = loop.call_later(timeout_s, self._fail, RedisTimeoutError(f"no reply within {timeout_s} s"))
        packed = [hiredis.pack_command(command) for command in commands]  # type: ignore[arg-type] # stubs: tuples of one
        self._transport.write(b"".join(packed))
        try:
            return await self._answer
        except asyncio.CancelledError:
            self.abort()
            raise
        finally:
            deadline.cancel()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's derives from nothing
        self._opened.add(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not False:
                self._replies.append(reply)
        except InvalidResponse as error:
            self._fail(error)
            return
        if self._answer is None:
            self.abort()  # no request is open
        elif len(self._replies) > self._expected:
            self._fail(InvalidResponse("more replies than commands"))
        elif len(self._replies) == self._expected:
            answer, self._answer = self._answer, None
            if not answer.done():
                answer.set_result(self._replies)

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        self._fail(RedisConnectionError(str(exc) if exc else "the server closed the connection"))

    def abort(self) -> None:
        self._forget()
        self._transport.abort()

    def _forget(self) -> None:
        self._opened.discard(self)
        if self in self._idle:
            self._idle.remove(self)

    def _fail(self, error: RedisError) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            self.abort()
            if not answer.done():
                answer.set_exception(error)
