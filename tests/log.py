"""The log for tests: topics of their own, what is appended from now on, and what a group has committed."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import stamina
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from infra.kafka.client import make_consumer
from infra.kafka.offsets import NO_COORDINATOR
from infra.settings import Settings
from schemas.codec import VERSION_HEADER, Undecodable, decode
from schemas.events import AnyEvent, OrderStatusChanged
from schemas.ids import OrderId
from schemas.topics import FOR_EVER, Topic

HEARD_WITHIN_S = 30.0
Headers = list[tuple[str, bytes | None]]


def own_topic(partitions: int = 1) -> Topic:
    """A topic that nobody else reads or writes."""
    return Topic(f"test-{uuid.uuid4().hex[:12]}", "any", partitions, FOR_EVER)


@asynccontextmanager
async def _admin(settings: Settings) -> AsyncIterator[Any]:
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap_servers)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def create(settings: Settings, topic: Topic) -> None:
    async with _admin(settings) as admin:
        await admin.create_topics([NewTopic(topic.name, topic.partitions, 1)])


async def commit(settings: Settings, group: str, topic: Topic, offsets: Mapping[int, int]) -> None:
    """As a member of the group would, that has gone since."""
    consumer = make_consumer(settings, group=group)
    await consumer.start()
    try:
        parts = {TopicPartition(topic.name, partition): offset for partition, offset in offsets.items()}
        consumer.assign(list(parts))
        async for attempt in stamina.retry_context(on=NO_COORDINATOR, timeout=HEARD_WITHIN_S):
            with attempt:
                await consumer.commit(parts)
    finally:
        await consumer.stop()


async def committed(settings: Settings, group: str, topic: Topic) -> dict[int, int]:
    """Next offset to process by partition; 0 before the first commit."""
    async with _admin(settings) as admin:
        # On a broker that nobody has asked before, this makes its offsets topic, and is "not available" meanwhile.
        async for attempt in stamina.retry_context(on=NO_COORDINATOR, attempts=None, timeout=20.0, wait_max=0.5):
            with attempt:
                known: Mapping[TopicPartition, Any] = await admin.list_consumer_group_offsets(group)
    offsets = {tp.partition: meta.offset for tp, meta in known.items() if tp.topic == topic.name}
    return {partition: max(offsets.get(partition, 0), 0) for partition in range(topic.partitions)}


@asynccontextmanager
async def producing(settings: Settings, **options: Any) -> AsyncIterator[AIOKafkaProducer]:
    """A producer as anybody may have one: it appends what it is told to."""
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.kafka_bootstrap_servers, max_request_size=8 << 20, linger_ms=2, **options
    )
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


class Tail:
    """Records of some topics from the moment it was opened."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self.records: list[Any] = []

    async def until(self, heard: Callable[[list[Any]], bool]) -> list[Any]:
        """Read on until `heard` says that what was wanted is there. Raises TimeoutError."""
        async with asyncio.timeout(HEARD_WITHIN_S):
            while not heard(self.records):
                for records in (await self._consumer.getmany(timeout_ms=200)).values():
                    self.records += records
        return self.records

    async def statuses(self, wanted: int, *orders: OrderId) -> list[OrderStatusChanged]:
        """The first `wanted` or more status events of these orders."""

        def of_orders() -> list[OrderStatusChanged]:
            events = [event for event in map(event_of, self.records) if isinstance(event, OrderStatusChanged)]
            return [event for event in events if event.order_id in orders]

        await self.until(lambda _: len(of_orders()) >= wanted)
        return of_orders()


def event_of(record: Any) -> AnyEvent | None:
    try:
        return decode(record.value, tuple(record.headers))
    except Undecodable:
        return None


@asynccontextmanager
async def tailing(settings: Settings, *topics: Topic) -> AsyncIterator[Tail]:
    consumer = make_consumer(settings)
    await consumer.start()
    try:
        partitions = [TopicPartition(topic.name, p) for topic in topics for p in range(topic.partitions)]
        consumer.assign(partitions)
        for partition, end in (await consumer.end_offsets(partitions)).items():
            consumer.seek(partition, end)
        yield Tail(consumer)
    finally:
        await consumer.stop()


VERSIONED: Headers = [VERSION_HEADER]
