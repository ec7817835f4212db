"""Where logs begin and end, where groups are, and who holds their partitions. Asked over connections made when needed."""

import asyncio
from collections.abc import Mapping
from typing import Any

import stamina
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.errors import (
    CoordinatorLoadInProgressError,
    GroupCoordinatorNotAvailableError,
    NotCoordinatorForGroupError,
)

from infra.kafka.client import CLOSE_TIMEOUT_S, REQUEST_TIMEOUT_MS, make_consumer
from infra.lifecycle import close_within
from infra.settings import Settings
from schemas import topics
from schemas.topics import Topic

NO_COORDINATOR = (GroupCoordinatorNotAvailableError, CoordinatorLoadInProgressError, NotCoordinatorForGroupError)


class Offsets:
    """Reads committed offsets and the first and last offsets of topics, with one admin client and one consumer without a
    group. Both connect on first use."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._admin: AIOKafkaAdminClient | None = None
        self._consumer: AIOKafkaConsumer | None = None
        self._connecting = asyncio.Lock()

    async def committed(self, group: str, topic: Topic) -> dict[int, int]:
        """The next offset to process, by partition; 0 if the group has not committed. Raises KafkaError or OSError."""
        await self._connect()
        assert self._admin is not None
        # The first request ever makes the broker create its offsets topic; until then it answers "not available".
        async for attempt in stamina.retry_context(on=NO_COORDINATOR, attempts=None, timeout=10.0, wait_max=0.5):
            with attempt:
                known = await self._admin.list_consumer_group_offsets(group)
        by_partition = {tp.partition: meta.offset for tp, meta in known.items() if tp.topic == topic.name}
        return {p: max(by_partition.get(p, 0), 0) for p in await self.partitions(topic)}

    async def held(self, group: str, topic: Topic) -> set[int]:
        """The partitions that the members of a group hold. Raises KafkaError or OSError."""
        await self._connect()
        assert self._admin is not None
        async for attempt in stamina.retry_context(on=NO_COORDINATOR, attempts=None, timeout=10.0, wait_max=0.5):
            with attempt:
                answer = (await self._admin.describe_consumer_groups([group]))[0]
        assignments = [member[4] for described in answer.groups for member in described[5] if member[4]]
        decoded: list[Any] = [ConsumerProtocolMemberAssignment.decode(assignment) for assignment in assignments]
        return {p for one in decoded for name, partitions in one.assignment if name == topic.name for p in partitions}

    async def ends(self, topic: Topic) -> dict[int, int]:
        """The offset the next record will get, by partition."""
        consumer = await self._connect()
        return _by_partition(await consumer.end_offsets(await self._of(topic)))

    async def begins(self, topic: Topic) -> dict[int, int]:
        """The first offset that is still stored, by partition."""
        consumer = await self._connect()
        return _by_partition(await consumer.beginning_offsets(await self._of(topic)))

    async def partitions(self, topic: Topic) -> list[int]:
        return [tp.partition for tp in await self._of(topic)]

    async def close(self) -> None:
        consumer, self._consumer, admin, self._admin = self._consumer, None, self._admin, None
        if consumer is not None and admin is not None:
            await _close(admin, consumer)

    async def _of(self, topic: Topic) -> list[TopicPartition]:
        consumer = await self._connect()
        found = consumer.partitions_for_topic(topic.name)
        if not found:
            await consumer._client.force_metadata_update()  # noqa: SLF001 - the only refresh aiokafka offers
            found = consumer.partitions_for_topic(topic.name) or set(range(topic.partitions))
        return [TopicPartition(topic.name, partition) for partition in sorted(found)]

    async def _connect(self) -> AIOKafkaConsumer:
        async with self._connecting:
            if self._consumer is None:
                admin = AIOKafkaAdminClient(
                    bootstrap_servers=self._settings.kafka_bootstrap_servers, request_timeout_ms=REQUEST_TIMEOUT_MS
                )
                consumer = make_consumer(self._settings, *(topic.name for topic in topics.ALL))
                try:
                    await admin.start()
                    await consumer.start()
                except BaseException:  # also when cancelled: both may hold connections already
                    await _close(admin, consumer)
                    raise
                consumer.pause(*consumer.assignment())  # a fetch that waits for data would delay every request
                self._admin, self._consumer = admin, consumer
            return self._consumer


async def _close(admin: AIOKafkaAdminClient, consumer: AIOKafkaConsumer) -> None:
    await close_within(consumer.stop(), CLOSE_TIMEOUT_S)
    await close_within(admin.close(), CLOSE_TIMEOUT_S)


def _by_partition(offsets: Mapping[TopicPartition, int]) -> dict[int, int]:
    return {tp.partition: offset for tp, offset in offsets.items()}
