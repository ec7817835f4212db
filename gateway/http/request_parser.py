"""Parses the requests of a connection and ignores a requested `Upgrade` (RFC 9110, 7.8).

aiohttp's parser stops at a request for another protocol and drops the bytes after it. So from the first mention of an
upgrade on, it gets at most one request at a time: then there are no bytes after the request at which it stops.
"""

import asyncio
from typing import Any

from aiohttp.http import HttpRequestParser, RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestPayloadError

BODY_BUFFER_BYTES = 64 * 1024
MENTION = b"upgrade"

Parsed = tuple[RawRequestMessage, StreamReader]


class RequestParser(HttpRequestParser):
    """Until a client mentions an upgrade, the only cost is a search in its bytes."""

    def __init__(
        self, protocol: Any, loop: asyncio.AbstractEventLoop, *, line_max_bytes: int, headers_max: int, queue_max: int
    ) -> None:
        super().__init__(
            protocol,
            loop,
            BODY_BUFFER_BYTES,
            max_line_size=line_max_bytes,
            max_field_size=line_max_bytes,
            max_headers=headers_max,
            payload_exception=RequestPayloadError,
            auto_decompress=False,
            max_msg_queue_size=queue_max,
        )
        self._queue_max = queue_max
        self._queued = 0
        self._last_bytes = b""  # the word may be split over two reads
        self._mentioned = False
        self._kept = b""  # not yet passed to aiohttp's parser
        self._body_bytes_left = 0
        self._stopped = False

    def feed_data(  # type: ignore[override] # aiohttp's other parameters are its constants
        self, data: bytes
    ) -> tuple[list[Parsed], bool, bytes]:
        """The requests that begin in `data`; never "upgraded", never a rest. Like aiohttp's, it keeps excess bytes."""
        if not self._mentioned:
            if MENTION not in (self._last_bytes + data).lower():
                return self._feed_whole(data), False, b""
            self._take_over()
        return self._feed_in_parts(data), False, b""

    def message_consumed(self) -> None:
        """aiohttp counts a request as queued from the end of its body on. A request consumed before that would count for
        ever, and the queue would stay full. So each feed tells it again that there is room."""
        self._queued -= 1
        super().message_consumed()

    def pause_reading(self) -> None:
        self._stopped = True
        super().pause_reading()

    def _feed_whole(self, data: bytes) -> list[Parsed]:
        self._last_bytes = data[1 - len(MENTION) :]
        if not self._queued:
            super().message_consumed()
        messages, upgraded, rest = super().feed_data(data)
        self._queued += len(messages)
        if upgraded:  # CONNECT, which needs no Upgrade header
            self.set_upgraded(False)
            self._take_over()
            messages = [*messages, *self._feed_in_parts(rest)]
        return messages

    def _take_over(self) -> None:
        """From here on only our own bound applies: a part has at most one request, and room is made before each."""
        self._mentioned = True
        for _ in range(self._queue_max):
            super().message_consumed()

    def _feed_in_parts(self, data: bytes) -> list[Parsed]:
        self._stopped = False
        messages = list(self._feed_part(b""))  # the bytes that it kept while its own queue was full
        kept, start = self._kept + data, 0
        while start < len(kept) and self._queued < self._queue_max and not self._stopped:
            part = self._next_part(kept, start)
            start += len(part)
            messages += self._feed_part(part)
        self._kept = kept[start:]
        return messages

    def _next_part(self, data: bytes, start: int) -> bytes:
        """One line, or the available bytes of a body of known length: no request ends inside such a part."""
        if self._body_bytes_left:
            part = data[start : start + self._body_bytes_left]
            self._body_bytes_left -= len(part)
            return part
        end = data.find(b"\n", start) + 1
        return data[start : end or len(data)]

    def _feed_part(self, part: bytes) -> list[Parsed]:
        super().message_consumed()
        messages, upgraded, _ = super().feed_data(part)
        self._queued += len(messages)
        if upgraded:
            self.set_upgraded(False)
        for message, _ in messages:  # at most one, except in the first feed
            self._body_bytes_left = int(message.headers.get("Content-Length", 0))
        return messages
