"""The publisher on a scripted producer: order, one batch in flight a partition, and what a replaced producer had not told."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, OutOfOrderSequenceNumber

from infra.kafka import publisher as module
from infra.kafka.publisher import RECORD_MAX_BYTES, Publisher, partition_of
from infra.settings import Settings
from schemas.topics import ORDERS, PAYMENTS

PARTITIONS = 6


@dataclass(slots=True)
class FakeBatch:
    values: list[bytes] = field(default_factory=list)
    limit: int = 1_000_000

    def append(self, *, timestamp: None, key: bytes, value: bytes, headers: list[Any]) -> object | None:
        if len(self.values) == self.limit:
            return None
        self.values.append(value)
        return self

    def close(self) -> None: ...


@dataclass(slots=True)
class Sent:
    """One batch on its way, until a test says what became of it."""

    topic: str
    partition: int
    values: list[bytes]
    delivery: "asyncio.Future[None]"


@dataclass
class FakeCluster:
    """Every producer made so far and every batch they were given."""

    starts: list[BaseException | None] = field(default_factory=list)
    producers: int = 0
    sent: list[Sent] = field(default_factory=list)
    batch_limit: int = 1_000_000
    hangs: int = 0  # so many batches that no producer takes

    def producer(self, **_: Any) -> "FakeProducer":
        self.producers += 1
        return FakeProducer(self)

    async def batches(self, count: int) -> list[Sent]:
        async with asyncio.timeout(5):
            while len(self.sent) < count:  # noqa: ASYNC110 - the producer under test tells nobody
                await asyncio.sleep(0.001)
        return self.sent


class FakeProducer:
    def __init__(self, cluster: FakeCluster) -> None:
        self._cluster = cluster

    async def start(self) -> None:
        if self._cluster.starts and (error := self._cluster.starts.pop(0)):
            raise error

    async def stop(self) -> None: ...

    async def partitions_for(self, _topic: str) -> set[int]:
        return set(range(PARTITIONS))

    def create_batch(self) -> FakeBatch:
        return FakeBatch(limit=self._cluster.batch_limit)

    async def send_batch(self, batch: FakeBatch, topic: str, *, partition: int) -> "asyncio.Future[None]":
        if self._cluster.hangs:
            self._cluster.hangs -= 1
            await asyncio.Event().wait()
        sent = Sent(topic, partition, batch.values, asyncio.get_running_loop().create_future())
        self._cluster.sent.append(sent)
        return sent.delivery


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    cluster = FakeCluster()
    monkeypatch.setattr(module, "AIOKafkaProducer", cluster.producer)
    monkeypatch.setattr(module, "STOP_TIMEOUT_S", 0.05)
    return cluster


@pytest.fixture
async def publisher(cluster: FakeCluster) -> AsyncIterator[Publisher]:
    opened = await Publisher.start(Settings())
    yield opened
    await opened.stop()


async def test_what_arrives_while_a_batch_is_under_way_is_the_next_batch(
    publisher: Publisher, cluster: FakeCluster
) -> None:
    """So records of one key stay in order, and a future ends with its own batch."""
    first = publisher.publish(ORDERS, "a", b"1")
    [one] = await cluster.batches(1)
    rest = [publisher.publish(ORDERS, "a", value) for value in (b"2", b"3")]
    await asyncio.sleep(0.02)  # time enough for a second batch, which must not be sent
    assert len(cluster.sent) == 1
    one.delivery.set_result(None)
    await first
    assert not rest[0].done()
    _, two = await cluster.batches(2)
    assert two.values == [b"2", b"3"]
    two.delivery.set_result(None)
    await asyncio.gather(*rest)
    assert publisher.unpublished == 0


async def test_a_slow_partition_holds_back_no_other(publisher: Publisher, cluster: FakeCluster) -> None:
    publisher.publish(ORDERS, "a", b"slow")
    await cluster.batches(1)
    other = publisher.publish(PAYMENTS, "a", b"fast")
    _, fast = await cluster.batches(2)
    fast.delivery.set_result(None)
    await other


async def test_a_full_batch_leaves_the_rest_for_the_next_one(publisher: Publisher, cluster: FakeCluster) -> None:
    cluster.batch_limit = 2
    waiting = [publisher.publish(ORDERS, "a", str(n).encode()) for n in range(5)]
    for n in range(3):
        (await cluster.batches(n + 1))[n].delivery.set_result(None)
    await asyncio.gather(*waiting)
    assert [value for sent in cluster.sent for value in sent.values] == [b"0", b"1", b"2", b"3", b"4"]


async def test_a_producer_that_lost_its_sequence_is_replaced_and_what_it_owed_is_sent_again_in_order(
    publisher: Publisher, cluster: FakeCluster
) -> None:
    publisher.publish(ORDERS, "a", b"1")
    [one] = await cluster.batches(1)
    last = publisher.publish(ORDERS, "a", b"2")
    one.delivery.set_exception(OutOfOrderSequenceNumber())
    _, again = await cluster.batches(2)
    assert again.values == [b"1", b"2"]
    assert cluster.producers == 2
    again.delivery.set_result(None)
    await last
    assert publisher.unpublished == 0


async def test_a_late_word_from_a_replaced_producer_ends_nothing_twice(
    publisher: Publisher, cluster: FakeCluster
) -> None:
    waiting = publisher.publish(ORDERS, "a", b"1")
    other = publisher.publish(PAYMENTS, "a", b"2")
    one, two = await cluster.batches(2)
    one.delivery.set_exception(OutOfOrderSequenceNumber())
    *_, third, fourth = await cluster.batches(4)
    two.delivery.set_result(None)
    await asyncio.sleep(0)
    assert not other.done()
    third.delivery.set_result(None)
    fourth.delivery.set_result(None)
    await asyncio.gather(waiting, other)
    assert publisher.unpublished == 0


async def test_a_producer_that_never_answers_is_replaced_and_what_it_owed_is_sent_again(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage waits for its publish and is at work meanwhile: no watchdog would end that."""
    monkeypatch.setattr(module, "DELIVERY_TIMEOUT_S", 0.05)
    monkeypatch.setattr(module, "POLL_INTERVAL_S", 0.01)
    publisher = await Publisher.start(Settings())
    waiting = publisher.publish(ORDERS, "a", b"1")
    _, again = await cluster.batches(2)
    assert (cluster.producers, again.values) == (2, [b"1"])
    again.delivery.set_result(None)
    await waiting
    await publisher.stop()


async def test_a_producer_that_hangs_over_a_batch_is_replaced(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REQUEST_TIMEOUT_S", 0.05)
    cluster.hangs = 1
    publisher = await Publisher.start(Settings())
    waiting = publisher.publish(ORDERS, "a", b"1")
    [sent] = await cluster.batches(1)
    assert cluster.producers == 2
    sent.delivery.set_result(None)
    await waiting
    await publisher.stop()


async def test_records_wait_while_the_broker_cannot_be_reached(cluster: FakeCluster) -> None:
    cluster.starts = [KafkaError("away"), None]
    publisher = await Publisher.start(Settings())
    waiting = publisher.publish(ORDERS, "a", b"1")
    assert publisher.unpublished == 1
    [one] = await cluster.batches(1)
    one.delivery.set_result(None)
    await waiting
    await publisher.stop()


async def test_a_record_that_can_never_be_written_fails_alone(publisher: Publisher, cluster: FakeCluster) -> None:
    """One that is too large for us at once, one that the broker finds too large when it answers; the rest goes on."""
    with pytest.raises(MessageSizeTooLargeError):
        await publisher.publish(ORDERS, "a", b"x" * (RECORD_MAX_BYTES + 1))
    refused = publisher.publish(ORDERS, "a", b"1")
    [one] = await cluster.batches(1)
    one.delivery.set_exception(MessageSizeTooLargeError())
    with pytest.raises(MessageSizeTooLargeError):
        await refused
    taken = publisher.publish(ORDERS, "a", b"2")
    (await cluster.batches(2))[1].delivery.set_result(None)
    await taken
    assert (publisher.unpublished, cluster.producers) == (0, 1)


async def test_what_is_left_when_it_stops_fails(cluster: FakeCluster) -> None:
    publisher = await Publisher.start(Settings())
    left = publisher.publish(ORDERS, "a", b"1")
    await cluster.batches(1)
    await publisher.stop()
    with pytest.raises(KafkaError):
        await left


def test_the_partition_of_a_key_is_librdkafkas() -> None:
    """CRC-32 of "123456789" is 0xCBF43926, the check value of its definition."""
    assert partition_of(b"123456789", 1_000) == 0xCBF43926 % 1_000
