"""Requests on one connection, some of which ask for a protocol that nobody here speaks: all are read, in order."""

import asyncio
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from aiohttp.http import HttpRequestParser
from aiohttp.http_parser import HttpRequestParserPy
from hypothesis import given
from hypothesis import strategies as st

from gateway.http.request_parser import RequestParser

QUEUE_MAX = 4
PLAIN = b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n"
ASKS = b"GET /%d HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: %s\r\n\r\n"
ASKS_WITH_BODY = (
    b"POST /%d HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: %s\r\nContent-Length: 12\r\n\r\n{\n\r\n\r\nabcde}"
)
ASKS_IN_CHUNKS = (
    b"POST /%d HTTP/1.1\r\nHost: x\r\nuPGRADE: %s\r\nconnection: keep-alive, UPGRADE\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"4\r\na\r\nb\r\n8\r\nc\r\n\r\ndef\r\n0\r\nTrailer: x\r\n\r\n"
)
KINDS = (ASKS, ASKS_WITH_BODY, ASKS_IN_CHUNKS)
PROTOCOLS = (b"h2c", b"foo", b"TLS/1.0", b"websocket", b"tcp", b"WebSocket, h2c")


class Protocol:
    """What a parser needs of its connection."""

    def pause_reading(self) -> None: ...

    def resume_reading(self, resume_parser: bool = True) -> None: ...


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def _read(loop: asyncio.AbstractEventLoop, reads: list[bytes]) -> list[tuple[str, bytes]]:
    """Paths and bodies; the queue is worked off whenever it is full, as a connection does it."""
    parser = RequestParser(Protocol(), loop, line_max_bytes=8_192, headers_max=64, queue_max=QUEUE_MAX)
    seen: list[Any] = []
    for data in reads:
        messages, upgraded, tail = parser.feed_data(data)
        while messages:
            assert (len(messages) <= QUEUE_MAX, upgraded, tail) == (True, False, b"")
            seen += messages
            for _ in messages:
                parser.message_consumed()
            messages, upgraded, tail = parser.feed_data(b"")
    return [
        (message.path, b"" if body.is_eof() and not body.total_bytes else body.read_nowait()) for message, body in seen
    ]


_request = st.one_of(st.just((PLAIN, b"")), st.tuples(st.sampled_from(KINDS), st.sampled_from(PROTOCOLS)))


@given(st.lists(_request, min_size=1, max_size=12), st.lists(st.integers(0, 2_000), max_size=6))
def test_whatever_upgrades_are_asked_for_and_however_the_bytes_are_cut_every_request_is_read(
    requests: list[tuple[bytes, bytes]], cuts: list[int]
) -> None:
    loop = asyncio.new_event_loop()
    try:
        texts = [kind % ((n, protocol) if protocol else n) for n, (kind, protocol) in enumerate(requests)]
        stream = b"".join(texts)
        places = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
        reads = [stream[start:end] for start, end in pairwise(places)]
        bodies = {PLAIN: b"", ASKS: b"", ASKS_WITH_BODY: b"{\n\r\n\r\nabcde}", ASKS_IN_CHUNKS: b"a\r\nbc\r\n\r\ndef"}
        assert _read(loop, reads) == [(f"/{n}", bodies[kind]) for n, (kind, _) in enumerate(requests)]
    finally:
        loop.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_that_comes_byte_by_byte_is_read(loop: asyncio.AbstractEventLoop, kind: bytes) -> None:
    stream = kind % (0, b"h2c") + PLAIN % 1
    assert [path for path, _ in _read(loop, [bytes([byte]) for byte in stream])] == ["/0", "/1"]


def test_requests_whose_bodies_come_late_do_not_fill_the_queue_for_ever(loop: asyncio.AbstractEventLoop) -> None:
    """aiohttp counts one that is taken up before its body has come as queued for good."""
    parser = RequestParser(Protocol(), loop, line_max_bytes=8_192, headers_max=64, queue_max=QUEUE_MAX)
    for _ in range(2 * QUEUE_MAX):
        parser.feed_data(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n")
        parser.message_consumed()
        parser.feed_data(b"{}")
    messages, _, _ = parser.feed_data(PLAIN % 0 + PLAIN % 1)
    assert [message.path for message, _ in messages] == ["/0", "/1"]


def test_aiohttps_own_parser_drops_what_follows_an_upgrade_it_does_not_know(loop: asyncio.AbstractEventLoop) -> None:
    """When this fails, `RequestParser` is no longer needed."""
    if HttpRequestParser is HttpRequestParserPy:
        pytest.skip("only the compiled parser does")
    parser = HttpRequestParser(Protocol(), loop, 65_536, max_msg_queue_size=32)  # type: ignore[arg-type] # all that it uses
    messages, _, _ = parser.feed_data(ASKS % (0, b"h2c") + PLAIN % 1)
    more, _, _ = parser.feed_data(PLAIN % 2)
    assert [message.path for message, _ in (*messages, *more)] == ["/0", "/2"]
