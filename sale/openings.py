"""Checks whether the log was wiped, and whether it has a product's opening (stock.opened of an epoch)."""

import asyncio
from contextlib import suppress
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from infra.kafka.client import CLOSE_TIMEOUT_S, make_consumer
from infra.kafka.offsets import Offsets
from infra.kafka.publisher import partition_of
from infra.lifecycle import close_within
from infra.settings import Settings
from schemas.codec import Undecodable, decode
from schemas.events import StockOpened
from schemas.ids import ProductId
from schemas.topics import ALL, ORDERS

READ_TIMEOUT_S = 10.0


class EventLog:
    """Methods raise KafkaError, OSError or TimeoutError if Kafka does not answer."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._offsets = Offsets(settings)
        self._ends: dict[str, dict[int, int]] = {}
        self._has_topics = False  # a cached answer; asked again after every error

    async def was_wiped(self) -> bool:
        """Whether a topic is missing, or ends before its last known end."""
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                return await self._ask()
        except (KafkaError, OSError, TimeoutError):
            self._has_topics = False
            await self._offsets.close()
            raise

    async def close(self) -> None:
        await self._offsets.close()

    async def _ask(self) -> bool:
        if not self._has_topics and {topic.name for topic in ALL} - await self._topics():
            await self._offsets.close()
            self._ends.clear()
            return True
        self._has_topics = True
        before, self._ends = self._ends, {topic.name: await self._offsets.ends(topic) for topic in ALL}
        return any(
            self._ends[name].get(partition, 0) < end for name, ends in before.items() for partition, end in ends.items()
        )

    async def _topics(self) -> set[str]:
        consumer = make_consumer(self._settings)
        try:
            await consumer.start()
            return set(await consumer.topics())
        finally:
            await close_within(consumer.stop(), CLOSE_TIMEOUT_S)

    async def has_opening(self, product: ProductId, epoch: int, opened_from: int) -> bool:
        """Whether the log has stock.opened of this epoch or a later one, or no longer keeps it.

        `opened_from`: the end of the log before it was published.
        """
        key = str(product).encode()
        tp = TopicPartition(ORDERS.name, partition_of(key, len(await self._offsets.partitions(ORDERS))))
        consumer = make_consumer(self._settings, max_partition_fetch_bytes=1 << 20)
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                await consumer.start()
            consumer.assign([tp])
            begin = (await consumer.beginning_offsets([tp]))[tp]
            end = (await consumer.end_offsets([tp]))[tp]
            return opened_from < begin or await self._search(consumer, tp, key, epoch, opened_from, end)
        finally:
            await close_within(consumer.stop(), CLOSE_TIMEOUT_S)

    async def _search(self, consumer: Any, tp: TopicPartition, key: bytes, epoch: int, start: int, end: int) -> bool:
        consumer.seek(tp, start)
        position = start
        while position < end:
            async with asyncio.timeout(READ_TIMEOUT_S):
                fetched = await consumer.getmany(tp, timeout_ms=500, max_records=1_000)
            for record in fetched.get(tp, ()):
                if record.key == key and _epoch_of(record.value) >= epoch:
                    return True
            position = await consumer.position(tp)
        return False


def _epoch_of(value: bytes) -> int:
    with suppress(Undecodable):
        event = decode(value)
        if isinstance(event, StockOpened):
            return event.epoch
    return 0
