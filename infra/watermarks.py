"""Groups in; out how far each has come: its lag by partition, and its watermark.

A group's watermark is a time (milliseconds, the broker's clock): whatever was appended before it has been processed and
committed. Nothing can be stranded that is newer than the watermark of who should move it. The answer may be older than
the truth, never newer.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from schemas.topics import CONSUMED_BY, Topic

from .kafka import CLOSE_TIMEOUT_S, Offsets, make_consumer
from .lifecycle import leave_behind
from .logs import get_logger
from .settings import Settings

CACHED_S = 0.2
ANSWER_TIMEOUT_S = 3.0
AWAY = (KafkaError, OSError, TimeoutError)

log = get_logger()


async def unprocessed_from(offsets: Offsets, group: str, topic: Topic) -> dict[int, int]:
    """Where the group goes on, by partition.

    A position outside of the log means its beginning: the group resets to it, and one that is ahead of its log belonged
    to a log that was wiped.
    """
    committed = await offsets.committed(group, topic)
    begins, ends = await offsets.begins(topic), await offsets.ends(topic)
    return {p: at if begins[p] <= at <= ends[p] else begins[p] for p, at in committed.items()}


class Watermarks:
    """Asked often: answers are cached for 0.2 s, and an append time is fetched again only when the group has moved."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._offsets = Offsets(settings)
        self._consumer: Any | None = None
        self._asking = asyncio.Lock()
        self._answers: dict[str, tuple[float, int | None]] = {}
        self._appended: dict[TopicPartition, tuple[int, int]] = {}  # offset, append time of the record there

    async def lag(self, group: str) -> dict[int, int]:
        """Records not processed yet, by partition. Raises KafkaError, OSError or TimeoutError when Kafka cannot say."""
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            return {p: end - at for p, (at, end) in (await self._positions(group)).items()}

    async def watermark(self, group: str) -> int | None:
        """None when Kafka cannot say: then nothing counts as stranded."""
        async with self._asking:
            asked_at, answer = self._answers.get(group, (-CACHED_S, None))
            if time.monotonic() - asked_at < CACHED_S:
                return answer
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    answer = await self._ask(group)
            except AWAY as error:
                log.warning("no watermark", group=group, error=repr(error))
                await self._reset()
                answer = None
            self._answers[group] = (time.monotonic(), answer)
            return answer

    async def close(self) -> None:
        await self._reset()

    async def _positions(self, group: str) -> dict[int, tuple[int, int]]:
        topic = CONSUMED_BY[group]
        starts = await unprocessed_from(self._offsets, group, topic)
        ends = await self._offsets.ends(topic)
        return {p: (at, max(ends[p], at)) for p, at in starts.items()}

    async def _ask(self, group: str) -> int:
        now_ms = time.time_ns() // 1_000_000  # before the offsets: what is appended from here on is not known to us
        name = CONSUMED_BY[group].name
        behind = {TopicPartition(name, p): at for p, (at, end) in (await self._positions(group)).items() if at < end}
        times = [await self._append_time(tp, offset) for tp, offset in behind.items()]
        return min([now_ms, *times])

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
                await leave_behind(consumer.stop(), CLOSE_TIMEOUT_S)
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
            await leave_behind(consumer.stop(), CLOSE_TIMEOUT_S)
        await self._offsets.close()


async def lags(watermarks: Watermarks) -> Mapping[str, dict[int, int]]:
    """The lag of every group of ours, by partition."""
    return {group: await watermarks.lag(group) for group in CONSUMED_BY}
