"""Events to bytes and back; what cannot be decoded is `Undecodable`, with the reason that goes to the dead-letter topic.

msgspec instead of orjson for events: it checks types and bounds while it parses, at the speed of the parse
(docs/decisions/0002-event-codec.md).
"""

import msgspec

from .events import AnyEvent

VERSION_HEADER = ("schema-version", b"1")
TRACE_HEADER = "traceparent"  # W3C, on the records of a traced order alone
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
    """Raises Undecodable; nothing else, whatever the bytes."""
    if value is None:
        raise Undecodable("null value")
    if len(value) > MAX_EVENT_BYTES:
        raise Undecodable(f"{len(value)} bytes, at most {MAX_EVENT_BYTES} are an event")
    for name, version in headers:
        if name == VERSION_HEADER[0] and version not in READABLE_VERSIONS:
            raise Undecodable(f"unknown schema version {version!r:.60}")
    try:
        return _decoder.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Undecodable(str(error)) from None
