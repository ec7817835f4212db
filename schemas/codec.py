"""Encodes and decodes events. `Undecodable` carries the reason for the dead-letter topic.

Events use msgspec, not orjson: it checks types and limits while it parses, at no extra cost
(docs/decisions/0002-event-codec.md).
"""

import msgspec

from .events import AnyEvent

VERSION_HEADER = ("schema-version", b"1")
TRACE_HEADER = "traceparent"  # W3C; only on the records of a traced order
READABLE_VERSIONS = frozenset({b"1"})
MAX_EVENT_BYTES = 64 * 1024

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)

Headers = tuple[tuple[str, bytes], ...]


class Undecodable(Exception):
    """The record can never be read: wrong bytes, wrong schema or an unknown version."""


def encode(event: AnyEvent) -> bytes:
    return _encoder.encode(event)


def decode(value: bytes | None, headers: Headers = ()) -> AnyEvent:
    """Raises Undecodable, and no other error, for any bytes."""
    if value is None:
        raise Undecodable("null value")
    if len(value) > MAX_EVENT_BYTES:
        raise Undecodable(f"{len(value)} bytes: an event has at most {MAX_EVENT_BYTES}")
    for name, version in headers:
        if name == VERSION_HEADER[0] and version not in READABLE_VERSIONS:
            raise Undecodable(f"unknown schema version {version!r:.60}")
    try:
        return _decoder.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Undecodable(str(error)) from None
