"""Groups in; out how far each has come: its lag by partition, its delay, and its watermark.

A group's watermark is a moment (milliseconds since this machine's boot): whatever was appended before it has been processed
and committed. Nothing can be stranded that is newer than the watermark of who should move it. The answer may be older than
the truth, never newer. No wall clock has a say in it: it is the last moment at which the log was seen to end where the
group has come to by now.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from infra.kafka.client import CLOSE_TIMEOUT_S, Offsets, make_consumer
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
    """Where the group goes on, by partition.

    A position outside of the log means its beginning: the group resets to it, and one that is ahead of its log belonged
    to a log that was wiped.
    """
    committed = await offsets.committed(group, topic)
    begins, ends = await offsets.begins(topic), await offsets.ends(topic)
    return {p: at if begins[p] <= at <= ends[p] else begins[p] for p, at in committed.items()}


class Samples:
    """Where a topic ended, and when that was asked: enough to tell up to which moment a group has read it."""

    def __init__(self) -> None:
        self._ends: list[tuple[int, Mapping[int, int]]] = []  # moments (ms), oldest first

    def add(self, moment_ms: int, ends: Mapping[int, int]) -> None:
        """`moment_ms`: before it was asked for the ends. Beyond a bound every other sample goes: coarser, never wrong."""
        self._ends.append((moment_ms, ends))
        if len(self._ends) > MOST_SAMPLES:
            del self._ends[1:-1:2]

    def passed_ms(self, positions: Mapping[int, int]) -> int | None:
        """The last moment at which the topic ended where the group has been since; what is older is forgotten."""
        for place in reversed(range(len(self._ends))):
            moment_ms, ends = self._ends[place]
            if all(positions.get(partition, -1) >= end for partition, end in ends.items()):
                del self._ends[:place]
                return moment_ms
        return None


class Watermarks:
    """Asked often: answers are cached for 0.2 s, and an append time is fetched again only when the group has moved."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._offsets = Offsets(settings)
        self._consumer: Any | None = None
        self._asking = asyncio.Lock()
        self._answers: dict[str, tuple[float, int | None]] = {}
        self._samples = {group: Samples() for group in CONSUMED_BY}
        self._appended: dict[TopicPartition, tuple[int, int]] = {}  # offset, append time of the record there

    async def lag(self, group: str) -> dict[int, int]:
        """Records not processed yet, by partition. Raises KafkaError, OSError or TimeoutError when Kafka cannot say."""
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            return {p: end - at for p, (at, end) in (await self._positions(group)).items()}

    async def unassigned(self, group: str) -> set[int]:
        """The partitions that no member of the group holds. Raises like `lag`."""
        topic = CONSUMED_BY[group]
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            return set(await self._offsets.partitions(topic)) - await self._offsets.held(group, topic)

    async def watermark(self, group: str) -> int | None:
        """None when Kafka cannot say, or the group has not come to where its log was first seen to end: then nothing
        counts as stranded."""
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
        """How old the oldest record is that is not processed. To be shown: the broker's clock and ours may differ.

        Raises KafkaError, OSError or TimeoutError when Kafka cannot say.
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
        moment_ms = since_boot_ms()  # before the offsets: what is appended from here on is not known to us
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
            except BaseException:  # also when the asker has given up: it may hold connections already
                await close_within(consumer.stop(), CLOSE_TIMEOUT_S)
                raise
            consumer.assign(every)
            consumer.pause(*every)
            self._consumer = consumer
        return self._consumer

    async def _reset(self) -> None:
        """New connections next time; a wiped log must not be answered for from memory either."""
        consumer, self._consumer = self._consumer, None
        self._appended.clear()
        if consumer is not None:
            await close_within(consumer.stop(), CLOSE_TIMEOUT_S)
        await self._offsets.close()


async def lags(watermarks: Watermarks) -> Mapping[str, dict[int, int]]:
    """The lag of every group of ours, by partition."""
    return {group: await watermarks.lag(group) for group in CONSUMED_BY}
