"""A dead letter keeps its bytes and its provenance; too many of them are a fault of ours, and stop the stage."""

import asyncio
from typing import Any, cast

import pytest

from infra.kafka.publisher import Publisher
from schemas.topics import DEAD_LETTERS, Topic
from streams.dead_letters import MAX_REASON_BYTES, WINDOW_S, DeadLetterLimitExceeded, DeadLetters

Letter = tuple[Topic, bytes, bytes, dict[str, bytes]]


class FakePublisher:
    """Remembers what was published; acknowledges when told to."""

    def __init__(self) -> None:
        self.letters: list[Letter] = []
        self.acknowledge = asyncio.Event()
        self.acknowledge.set()

    def publish(self, topic: Topic, key: bytes, value: bytes, headers: Any) -> "asyncio.Future[Any]":
        self.letters.append((topic, key, value, dict(headers)))
        return asyncio.ensure_future(self.acknowledge.wait())


def letters_to(publisher: FakePublisher, **options: Any) -> DeadLetters:
    return DeadLetters(cast(Publisher, publisher), **options)


async def test_a_letter_carries_the_original_bytes_and_where_it_came_from() -> None:
    """Enough to find, read and redrive the record."""
    publisher = FakePublisher()
    await letters_to(publisher).send("orders", 3, 41, b"key", b"\xff\x00", "not JSON")
    headers = {
        "source-topic": b"orders",
        "source-partition": b"3",
        "source-offset": b"41",
        "reason": b"not JSON",
    }
    assert publisher.letters == [(DEAD_LETTERS, b"key", b"\xff\x00", headers)]


async def test_burying_ends_only_when_the_broker_has_the_letter() -> None:
    """Only then may the source record be acknowledged."""
    publisher = FakePublisher()
    publisher.acknowledge.clear()
    burying = asyncio.create_task(letters_to(publisher).send("orders", 0, 0, None, None, "null value"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not burying.done()
    publisher.acknowledge.set()
    await burying


async def test_a_long_reason_is_cut() -> None:
    publisher = FakePublisher()
    await letters_to(publisher).send("orders", 0, 0, b"", b"", "é" * 10_000)
    assert len(publisher.letters[0][3]["reason"]) <= MAX_REASON_BYTES


async def test_a_letter_always_fits_into_the_topic() -> None:
    """A record may be larger than what a broker takes back (compressed, or with our headers): it is cut, and says so."""
    publisher = FakePublisher()
    await letters_to(publisher).send("orders", 0, 0, b"k" * 1_000_000, b"v" * 50_000_000, "too large")
    _, key, value, headers = publisher.letters[0]
    assert len(key) + len(value) + sum(len(n) + len(v) for n, v in headers.items()) < 1_000_000
    assert headers["cut-from-bytes"] == b"key 1000000, value 50000000"


async def test_the_limit_counts_letters_within_a_window_and_raises_before_the_next_is_sent() -> None:
    """Old letters are forgotten; one above the limit within a minute is not sent, so it cannot be acknowledged."""
    now_s = 0.0
    publisher = FakePublisher()
    letters = letters_to(publisher, limit=3, clock=lambda: now_s)
    for offset in range(3):
        await letters.send("orders", 0, offset, b"", b"", "poison")
    now_s = WINDOW_S + 1
    for offset in range(3):
        await letters.send("orders", 0, 3 + offset, b"", b"", "poison")
    with pytest.raises(DeadLetterLimitExceeded):
        await letters.send("orders", 0, 6, b"", b"", "poison")
    assert len(publisher.letters) == letters.sent == 6
