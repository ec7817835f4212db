"""Round trips against a scripted server, and against the real one: replies in order, and never one for the next caller."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import hiredis
import pytest
import uvloop
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

from infra.redis.trips import NotSent, Trips
from infra.settings import Settings

Serve = Callable[[list[list[bytes]], asyncio.StreamWriter], Awaitable[None]]
TIMEOUT_S = 0.2


@asynccontextmanager
async def trips_to(
    serve: Serve, *, login: str = "", database: int = 0
) -> AsyncIterator[tuple[Trips, list[asyncio.StreamWriter]]]:
    """Trips to a server that does `serve` with the commands of each piece it reads; and the connections it accepted."""
    accepted: list[asyncio.StreamWriter] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(writer)
        parser = hiredis.Reader()
        try:
            while data := await reader.read(65_536):
                parser.feed(data)
                commands = []
                while (command := parser.gets()) is not False:
                    commands.append(command)
                await serve(commands, writer)
        except ConnectionError:
            pass  # the client hung up
        finally:
            writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    trips = Trips(f"redis://{login}127.0.0.1:{server.sockets[0].getsockname()[1]}/{database}", TIMEOUT_S)
    try:
        yield trips, accepted
    finally:
        trips.close()
        server.close()


async def echo(commands: list[list[bytes]], writer: asyncio.StreamWriter) -> None:
    for command in commands:
        writer.write(b"+%s\r\n" % command[-1])


async def test_replies_come_in_order_over_one_kept_connection() -> None:
    async with trips_to(echo) as (trips, accepted):
        assert await trips.run([("ECHO", i) for i in range(100)]) == [str(i).encode() for i in range(100)]
        assert await trips.run([("ECHO", "x")]) == [b"x"]
        assert len(accepted) == 1


async def test_trips_that_overlap_have_a_connection_each() -> None:
    async with trips_to(echo) as (trips, accepted):
        replies = await asyncio.gather(*(trips.run([("ECHO", i)]) for i in range(3)))
        assert (replies, len(accepted)) == ([[b"0"], [b"1"], [b"2"]], 3)


async def test_it_logs_in_and_selects_its_database_first() -> None:
    seen: list[list[bytes]] = []

    async def serve(commands: list[list[bytes]], writer: asyncio.StreamWriter) -> None:
        seen.extend(commands)
        writer.write(b"+OK\r\n" * len(commands))

    async with trips_to(serve, login="arya:needle@", database=7) as (trips, _):
        await trips.run([("PING",)])
    assert seen == [[b"AUTH", b"arya", b"needle"], [b"SELECT", b"7"], [b"PING"]]


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b"-NOSCRIPT none", NoScriptError),
        (b"-LOADING wait", BusyLoadingError),
        (b"-OOM full", OutOfMemoryError),
        (b"-READONLY replica", ReadOnlyError),
        (b"-ERR no", ResponseError),
    ],
)
async def test_an_error_reply_is_a_value_and_the_others_have_theirs(line: bytes, kind: type[RedisError]) -> None:
    async def serve(_commands: list[list[bytes]], writer: asyncio.StreamWriter) -> None:
        writer.write(b":1\r\n" + line + b"\r\n:3\r\n")

    async with trips_to(serve) as (trips, _):
        one, error, three = await trips.run([("A",), ("B",), ("C",)])
    assert (one, type(error), three) == (1, kind, 3)


async def test_a_refused_login_was_not_sent() -> None:
    async def serve(_commands: list[list[bytes]], writer: asyncio.StreamWriter) -> None:
        writer.write(b"-WRONGPASS no\r\n")

    async with trips_to(serve, login=":wrong@") as (trips, _):
        with pytest.raises(NotSent):
            await trips.run([("PING",)])


@pytest.mark.parametrize("answer", [b"-WRONGPASS no\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
async def test_a_refused_greeting_leaves_no_connection_open(answer: bytes) -> None:
    """Refused, not understood, or not answered in time."""

    async def serve(_commands: list[list[bytes]], writer: asyncio.StreamWriter) -> None:
        writer.write(answer)

    async with trips_to(serve, login=":wrong@") as (trips, accepted):
        for _ in range(5):
            with pytest.raises(NotSent):
                await trips.run([("PING",)])
        assert len(accepted) == 5
        async with asyncio.timeout(5.0):  # each sees its client hang up
            await asyncio.gather(*(connection.wait_closed() for connection in accepted))


async def test_a_server_that_is_not_there_was_not_sent_anything() -> None:
    with pytest.raises(NotSent):
        await Trips("redis://127.0.0.1:1/0", TIMEOUT_S).run([("PING",)])


async def test_a_late_reply_reaches_nobody() -> None:
    """Neither after a timeout nor after a cancellation: the next caller has a connection of its own."""
    held: list[asyncio.StreamWriter] = []

    async def serve(commands: list[list[bytes]], writer: asyncio.StreamWriter) -> None:
        if commands[0][0] == b"SLOW":
            held.append(writer)
            return
        for late in held:
            if not late.is_closing():
                late.write(b"+late\r\n")
        await echo(commands, writer)

    async with trips_to(serve) as (trips, accepted):
        with pytest.raises(RedisTimeoutError):
            await trips.run([("SLOW",)])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(TIMEOUT_S / 4):
                await trips.run([("SLOW",)])
        assert await trips.run([("ECHO", "mine")]) == [b"mine"]
        assert await trips.run([("ECHO", "too")]) == [b"too"]
        assert len(accepted) == 3


@pytest.mark.parametrize(
    ("sent", "error"),
    [(b"+half", RedisConnectionError), (b"", RedisConnectionError), (b"HTTP/1.1 200 OK\r\n", InvalidResponse)],
    ids=["broken off", "nothing", "not redis"],
)
async def test_what_is_no_whole_reply_is_an_unknown_outcome(sent: bytes, error: type[RedisError]) -> None:
    async def serve(_commands: list[list[bytes]], writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        writer.close()

    async with trips_to(serve) as (trips, _):
        with pytest.raises(error) as raised:
            await trips.run([("SET", "k", "v")])
        assert not isinstance(raised.value, NotSent)


async def test_one_reply_too_many_ends_the_connection() -> None:
    async def serve(commands: list[list[bytes]], writer: asyncio.StreamWriter) -> None:
        await echo(commands, writer)
        writer.write(b"+extra\r\n")

    async with trips_to(serve) as (trips, _):
        for value in (b"1", b"2", b"3"):
            with contextlib.suppress(RedisError):  # unknown, which is safe; never another's reply
                assert await trips.run([("ECHO", value)]) == [value]


def test_the_same_on_uvloop_which_our_processes_run_on() -> None:
    uvloop.run(test_replies_come_in_order_over_one_kept_connection())
    uvloop.run(test_a_late_reply_reaches_nobody())
    uvloop.run(test_a_refused_greeting_leaves_no_connection_open(b"-WRONGPASS no\r\n"))


async def test_the_real_server_answers_as_redis_py_reads_it(redis_settings: Settings) -> None:
    trips = Trips(redis_settings.redis_url, 5.0)
    try:
        key = "trips-test"
        replies = await trips.run([("SET", key, b"\x00\xff"), ("GET", key), ("HMGET", "none", "a", "b"), ("DEL", key)])
        assert replies == [b"OK", b"\x00\xff", [None, None], 1]
        [unknown] = await trips.run([("EVALSHA", "0" * 40, 0)])
        assert isinstance(unknown, NoScriptError)
    finally:
        trips.close()
