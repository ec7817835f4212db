"""Kept connections against a scripted server: reused when clean, never when anything about them is in doubt."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import uvloop
from yarl import URL

from infra.keep_alive import BrokenOff, KeepAliveClient, KeepAlivePost, NotConnected, NotHttp

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
PARTED = b'HTTP/1.1 202 X\r\nContent-Length: 16\r\nLocation: /api/order/1/status\r\n\r\n{"orderId": "1"}'
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@asynccontextmanager
async def posting_to(serve: Serve, idle_s: float = 10.0) -> AsyncIterator[tuple[KeepAlivePost, list[int]]]:
    """A client of a server that does `serve` with each connection; and the connections it accepted."""
    accepted: list[int] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(len(accepted))
        try:
            await serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client hung up
        finally:
            writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    url = URL(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/charges")
    client = KeepAliveClient(url, connect_timeout_s=2.0, idle_s=idle_s, body_max_bytes=1_000)
    try:
        yield KeepAlivePost(client, url, {}), accepted
    finally:
        client.close()
        server.close()


async def question(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    return head + await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))


def always(answer: bytes) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await question(reader)
            writer.write(answer)

    return serve


async def test_one_connection_serves_one_request_after_the_other_and_many_at_once_take_many() -> None:
    async with posting_to(always(OK)) as (client, accepted):
        for _ in range(3):
            assert (await client.ask(b"{}", "")).body == b"ok"
        assert len(accepted) == 1
        await asyncio.gather(*(client.ask(b"{}", "") for _ in range(5)))
        assert len(accepted) == 5


async def test_the_request_is_what_a_server_expects() -> None:
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await question(reader))
        writer.write(OK)

    async with posting_to(serve) as (client, _):
        await client.ask(b'{"a":1}', "Idempotency-Key: k\r\n")
    head, _, body = asked[0].partition(b"\r\n\r\n")
    line, *headers = head.split(b"\r\n")
    assert (line, body) == (b"POST /charges HTTP/1.1", b'{"a":1}')
    assert headers[0].startswith(b"Host: 127.0.0.1:")
    assert headers[1:] == [b"Idempotency-Key: k", b"Content-Length: 7"]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ],
    ids=["close", "HTTP/1.0"],
)
async def test_a_connection_that_the_server_ends_is_not_used_again(answer: bytes) -> None:
    async with posting_to(always(answer)) as (client, accepted):
        for _ in range(2):
            assert (await client.ask(b"{}", "")).body == b"ok"
        assert len(accepted) == 2


async def test_an_idle_connection_is_not_trusted_for_ever() -> None:
    async with posting_to(always(OK), idle_s=0.0) as (client, accepted):
        for _ in range(2):
            await client.ask(b"{}", "")
        assert len(accepted) == 2


async def test_what_nobody_asked_for_is_never_an_answer() -> None:
    """Neither a second answer behind the first, nor the late answer of a request that was given up."""
    late = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await question(reader)
        if not late.is_set():
            await late.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate")
        writer.write(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nextra")
        await reader.read()

    async with posting_to(serve) as (client, _):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.ask(b"{}", "")
        late.set()
        for _ in range(3):
            assert (await client.ask(b"{}", "")).body == b"ok"


async def test_an_announcement_is_not_the_answer() -> None:
    async with posting_to(always(b"HTTP/1.1 100 Continue\r\n\r\n" + OK)) as (client, _):
        assert (await client.ask(b"{}", "")).body == b"ok"


async def test_an_answer_that_breaks_off_is_said_to() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await question(reader)
        writer.write(OK[:-1])

    async with posting_to(serve) as (client, _):
        with pytest.raises(BrokenOff):
            await client.ask(b"{}", "")


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""], ids=["not TLS", "none in time"])
async def test_a_handshake_that_fails_leaves_no_connection_open(answer: bytes) -> None:
    gone: list[asyncio.Event] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        gone.append(asyncio.Event())
        ended = gone[-1]
        with contextlib.suppress(ConnectionError):
            while await reader.read(65_536):
                writer.write(answer)
        ended.set()
        writer.close()

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        url = URL(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/charges")
        client = KeepAlivePost(KeepAliveClient(url, connect_timeout_s=0.1, idle_s=1.0, body_max_bytes=1_000), url, {})
        for _ in range(3):
            with pytest.raises(NotConnected):
                await client.ask(b"{}", "")
        async with asyncio.timeout(5.0):
            await asyncio.gather(*(ended.wait() for ended in gone))
    assert len(gone) == 3


def test_the_same_on_uvloop_which_the_stage_runs_on() -> None:
    """Its transports are of another kind."""
    uvloop.run(test_one_connection_serves_one_request_after_the_other_and_many_at_once_take_many())
    uvloop.run(test_what_nobody_asked_for_is_never_an_answer())
    uvloop.run(test_an_answer_that_breaks_off_is_said_to())


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://[::1]:9000/charges", "[::1]:9000"),
        ("http://[::1]/charges", "[::1]"),
        ("http://someone:secret@127.0.0.1:9000/charges", "127.0.0.1:9000"),
        ("http://provider.example/charges", "provider.example"),
    ],
)
def test_the_host_is_named_as_http_wants_it(url: str, host: str) -> None:
    """An IPv6 address in brackets, the scheme's own port left out, and nobody's password."""
    client = KeepAliveClient(URL(url), connect_timeout_s=1, idle_s=1, body_max_bytes=1)
    assert client.host == host
    assert f"\r\nHost: {host}\r\n" in KeepAlivePost(client, URL(url), {})._head


async def test_a_handshake_that_fails_says_why() -> None:
    async def answer_at_once(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        await writer.drain()

    async with posting_to(answer_at_once) as (plain, _):
        url = URL(f"https://{plain._client.host}/charges")
        client = KeepAlivePost(KeepAliveClient(url, connect_timeout_s=2.0, idle_s=1, body_max_bytes=1), url, {})
        with pytest.raises(NotConnected, match=r"SSLError: .*WRONG_VERSION_NUMBER"):
            await client.ask(b"{}", "")


@pytest.mark.parametrize("cut", range(1, len(PARTED)))
async def test_an_answer_is_whole_only_when_all_of_it_is_there(cut: int) -> None:
    """Whatever the pieces it comes in."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await question(reader)
        writer.write(PARTED[:cut])
        await writer.drain()
        await rest.wait()
        writer.write(PARTED[cut:])

    rest = asyncio.Event()
    async with posting_to(serve) as (client, _):
        asking = asyncio.create_task(client.ask(b"{}", ""))
        await asyncio.wait({asking}, timeout=0.01)
        assert not asking.done()
        rest.set()
        answer = await asking
    assert (answer.status, answer.body, answer.header("location")) == (202, b'{"orderId": "1"}', "/api/order/1/status")


async def test_chunks_are_joined_and_what_is_no_answer_is_refused() -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    async with posting_to(always(chunked)) as (client, _):
        assert (await client.ask(b"{}", "")).body == b"abcde"
    async with posting_to(always(b"SSH-2.0 hello\r\n\r\n")) as (client, _):
        with pytest.raises(NotHttp):
            await client.ask(b"{}", "")
