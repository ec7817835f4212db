"""Measures the progress of consumer groups: lag by partition, delay, and watermark.

A group's watermark is a time (milliseconds since this machine's boot). Every record appended before it has been processed
and committed, so an order newer than the watermark of its next group is not stranded. The answer may be too old, never too
new. It uses no wall clock: it is the last time at which the log was seen to end at an offset that the group has now passed.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from infra.kafka.client import CLOSE_TIMEOUT_S, make_consumer
from infra.kafka.offsets import Offsets
from infra.lifecycle import close_within
from infra.logs import get_logger
from infra.settings import Settings
from schemas.clock import since_boot_ms
from schemas.topics import CONSUMED_BY, Topic

CACHED_S = 0.2
MOST_SAMPLES = 600
ANSWER_TIMEOUT_S = 3.0
KAFKA_ERRORS = (KafkaError, OSError, TimeoutError)

log = get_logger()


async def unprocessed_from(offsets: Offsets, group: str, topic: Topic) -> dict[int, int]:
    """The offset at which the group continues, by partition.

    A position outside of the log counts as its beginning, to which the group resets. A position ahead of the log comes
    from a log that was wiped since.
    """
    committed = await offsets.committed(group, topic)
    begins, ends = await offsets.begins(topic), await offsets.ends(topic)
    return {p: at if begins[p] <= at <= ends[p] else begins[p] for p, at in committed.items()}


class Samples:
    """End offsets of a topic and when they were read. They tell up to which time a group has read the topic."""

    def __init__(self) -> None:
        self._ends: list[tuple[int, Mapping[int, int]]] = []  # times (ms), oldest first

    def add(self, moment_ms: int, ends: Mapping[int, int]) -> None:
        """`moment_ms`: a time before the ends were read. Above the limit every second sample goes: coarser, never wrong."""
        self._ends.append((moment_ms, ends))
        if len(self._ends) > MOST_SAMPLES:
            del self._ends[1:-1:2]

    def passed_ms(self, positions: Mapping[int, int]) -> int | None:
        """The last time at which the topic ended at offsets that the group has passed. Older samples are dropped."""
        for place in reversed(range(len(self._ends))):
            moment_ms, ends = self._ends[place]
            if all(positions.get(partition, -1) >= end for partition, end in ends.items()):
                del self._ends[:place]
                return moment_ms
        return None


class Watermarks:
    """It is asked often: answers are cached for 0.2 s, and an append time is read again only when the group has moved."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._offsets = Offsets(settings)
        self._consumer: Any | None = None
        self._asking = asyncio.Lock()
        self._answers: dict[str, tuple[float, int | None]] = {}
        self._samples = {group: Samples() for group in CONSUMED_BY}
        self._appended: dict[TopicPartition, tuple[int, int]] = {}  # offset, append time of the record there

    async def lag(self, group: str) -> dict[int, int]:
        """Unprocessed records by partition. Raises KafkaError, OSError or TimeoutError if Kafka does not answer."""
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            return {p: end - at for p, (at, end) in (await self._positions(group)).items()}

    async def unassigned(self, group: str) -> set[int]:
        """The partitions that no member of the group holds. Raises the errors of `lag`."""
        topic = CONSUMED_BY[group]
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            return set(await self._offsets.partitions(topic)) - await self._offsets.held(group, topic)

    async def watermark(self, group: str) -> int | None:
        """None if Kafka does not answer, or if the group has not passed the first end offsets that were seen. Without a
        watermark no order counts as stranded."""
        async with self._asking:
            asked_at, answer = self._answers.get(group, (-CACHED_S, None))
            if time.monotonic() - asked_at < CACHED_S:
                return answer
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    answer = await self._ask(group)
            except KAFKA_ERRORS as error:
                log.warning("no watermark", group=group, error=repr(error))
                await self._reset()
                answer = None
            self._answers[group] = (time.monotonic(), answer)
            return answer

    async def delay_s(self, group: str) -> float:
        """The age of the oldest unprocessed record. Only for display: the broker's clock and ours may differ.

        Raises KafkaError, OSError or TimeoutError if Kafka does not answer.
        """
        try:
            async with self._asking, asyncio.timeout(ANSWER_TIMEOUT_S):
                name = CONSUMED_BY[group].name
                starts = {p: at for p, (at, end) in (await self._positions(group)).items() if at < end}
                times = [await self._append_time(TopicPartition(name, p), at) for p, at in starts.items()]
        except KAFKA_ERRORS:
            await self._reset()
            raise
        return max([0.0, *(time.time() - at_ms / 1000 for at_ms in times)])

    async def close(self) -> None:
        await self._reset()

    async def _positions(self, group: str) -> dict[int, tuple[int, int]]:
        topic = CONSUMED_BY[group]
        starts = await unprocessed_from(self._offsets, group, topic)
        ends = await self._offsets.ends(topic)
        return {p: (at, max(ends[p], at)) for p, at in starts.items()}

    async def _ask(self, group: str) -> int | None:
        moment_ms = since_boot_ms()  # before reading the offsets: they do not cover later records
        positions = await self._positions(group)
        self._samples[group].add(moment_ms, {p: end for p, (_, end) in positions.items()})
        return self._samples[group].passed_ms({p: at for p, (at, _) in positions.items()})

    async def _append_time(self, tp: TopicPartition, offset: int) -> int:
        known = self._appended.get(tp)
        if known is None or known[0] != offset:
            consumer = await self._reader()
            consumer.seek(tp, offset)
            consumer.resume(tp)
            try:
                record = await consumer.getone(tp)
            finally:
                consumer.pause(tp)
            known = self._appended[tp] = (offset, record.timestamp)
        return known[1]

    async def _reader(self) -> Any:
        if self._consumer is None:
            consumer = make_consumer(
                self._settings, max_partition_fetch_bytes=4096, fetch_max_wait_ms=20, metadata_max_age_ms=5_000
            )
            try:
                await consumer.start()
                every = [
                    TopicPartition(topic.name, p)
                    for topic in CONSUMED_BY.values()
                    for p in await self._offsets.partitions(topic)
                ]
            except BaseException:  # also when cancelled: it may hold connections already
                await close_within(consumer.stop(), CLOSE_TIMEOUT_S)
                raise
            consumer.assign(every)
            consumer.pause(*every)
            self._consumer = consumer
        return self._consumer

    async def _reset(self) -> None:
        """Connect anew next time, and forget the cached answers: the log may have been wiped."""
        consumer, self._consumer = self._consumer, None
        self._appended.clear()
        if consumer is not None:
            await close_within(consumer.stop(), CLOSE_TIMEOUT_S)
        await self._offsets.close()


async def lags(watermarks: Watermarks) -> Mapping[str, dict[int, int]]:
    """The lag of each of our groups, by partition."""
    return {group: await watermarks.lag(group) for group in CONSUMED_BY}
