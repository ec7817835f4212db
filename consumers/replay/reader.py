"""Reads raw records of topics, in offset order by partition. It joins no consumer group, commits nothing, writes nothing.

The offsets to read are fixed at the start (`OffsetRange` by partition), so a replay of a growing topic ends.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from infra.kafka.client import CLOSE_TIMEOUT_S, make_consumer
from infra.lifecycle import close_within
from infra.settings import Settings

from .when import AppendTime, Bound, Offset, show_ms

RECORDS_AT_ONCE = 20_000
PARTITION_FETCH_BYTES = 2 * 1024 * 1024
WAIT_MS = 500
STALLED_S = 10.0  # a working broker sends something within this
Record = Any  # aiokafka's ConsumerRecord


class ReplayError(Exception):
    """The requested records cannot be read; the text is for the user."""


class InvalidRequest(ReplayError):
    """The request itself is invalid: a usage error."""


@dataclass(frozen=True, slots=True)
class OffsetRange:
    """The offsets of one partition to read: `start` inclusive, `end` exclusive."""

    start: int
    end: int

    @property
    def size(self) -> int:
        return max(self.end - self.start, 0)


Spans = dict[TopicPartition, OffsetRange]


@dataclass(slots=True)
class ReadProgress:
    """The progress of a replay in offsets, not records: transaction markers use offsets too."""

    total: int
    done: int = 0
    positions: dict[TopicPartition, int] = field(default_factory=dict)


class TopicReader:
    """A consumer without a group. Every method raises KafkaError or OSError if the broker does not answer."""

    def __init__(self, consumer: AIOKafkaConsumer) -> None:
        self._consumer = consumer

    async def partitions(self, names: Sequence[str]) -> list[TopicPartition]:
        """Raises ReplayError with the names of existing topics if one is unknown."""
        # topics() makes the same request, but only this returns partitions of topics without a subscription.
        cluster = await self._consumer._client.fetch_all_metadata()  # noqa: SLF001
        known: set[str] = cluster.topics(exclude_internal_topics=False)
        if unknown := [name for name in names if name not in known]:
            there = ", ".join(sorted(name for name in known if not name.startswith("__"))) or "none"
            raise ReplayError(f"no topic {', '.join(map(repr, unknown))}; there are: {there}")
        found = []
        for name in dict.fromkeys(names):
            found += [TopicPartition(name, p) for p in sorted(cluster.partitions_for_topic(name) or ())]
        return found

    async def spans(self, names: Sequence[str], start: Bound | None, end: Bound | None) -> Spans:
        """The kept offsets between two bounds. Raises ReplayError if bounds are given and nothing lies between them."""
        partitions = await self.partitions(names)
        self._consumer.assign(partitions)
        begins = await self._consumer.beginning_offsets(partitions)
        ends = await self._consumer.end_offsets(partitions)
        starts = await self._resolve(partitions, start, begins, ends, begins)
        stops = await self._resolve(partitions, end, begins, ends, ends)
        spans = {tp: OffsetRange(starts[tp], max(stops[tp], starts[tp])) for tp in partitions}
        if (start or end) and not any(span.size for span in spans.values()):
            raise ReplayError(await self._nothing_there(names, begins, ends))
        return spans

    async def _resolve(
        self,
        partitions: Sequence[TopicPartition],
        bound: Bound | None,
        begins: dict[TopicPartition, int],
        ends: dict[TopicPartition, int],
        otherwise: dict[TopicPartition, int],
    ) -> dict[TopicPartition, int]:
        match bound:
            case None:
                return dict(otherwise)
            case Offset(value):
                return {tp: min(max(value, begins[tp]), ends[tp]) for tp in partitions}
            case AppendTime(ms):
                # The broker's time index returns the first record appended at that time or later, or none.
                found = await self._consumer.offsets_for_times(dict.fromkeys(partitions, ms))
                return {tp: min(found[tp].offset, ends[tp]) if found.get(tp) else ends[tp] for tp in partitions}

    async def _nothing_there(
        self, names: Sequence[str], begins: dict[TopicPartition, int], ends: dict[TopicPartition, int]
    ) -> str:
        spans = {tp: OffsetRange(begins[tp], ends[tp]) for tp in begins if begins[tp] < ends[tp]}
        what = ", ".join(names)
        if not spans:
            return f"no records between these bounds: {what} is empty"
        edges = [(await self._at(tp, span.start), await self._at(tp, span.end - 1)) for tp, span in spans.items()]
        first, last = min(edge[0] for edge in edges), max(edge[1] for edge in edges)
        offsets = f"offsets {min(s.start for s in spans.values())} to {max(s.end for s in spans.values()) - 1}"
        return f"no records between these bounds: {what} has {offsets}, {show_ms(first)} to {show_ms(last)}"

    async def _at(self, tp: TopicPartition, offset: int) -> int:
        """The append time of the record at an offset, or of the next record if a marker has that offset."""
        self._consumer.assign([tp])
        self._consumer.seek(tp, offset)
        batches = await self._consumer.getmany(tp, timeout_ms=5_000, max_records=1)
        return int(batches[tp][0].timestamp) if batches.get(tp) else 0

    async def read(self, spans: Spans, progress: ReadProgress) -> AsyncIterator[list[Record]]:
        """Every record of the spans, in batches of one partition each."""
        unread = {tp for tp, span in spans.items() if span.size}
        progress.positions |= {tp: spans[tp].start for tp in unread}
        self._consumer.assign(list(unread))
        for tp in unread:
            self._consumer.seek(tp, spans[tp].start)
        moved_at = time.monotonic()
        while unread:
            batches = await self._consumer.getmany(timeout_ms=WAIT_MS, max_records=RECORDS_AT_ONCE)
            moved_at = time.monotonic() if batches else moved_at
            if time.monotonic() - moved_at > STALLED_S:
                raise TimeoutError(f"Kafka has sent nothing for {STALLED_S:.0f} s, {len(unread)} partitions to go")
            for tp, records in batches.items():
                end = spans[tp].end
                wanted = records if records[-1].offset < end else [r for r in records if r.offset < end]
                if wanted:
                    yield wanted
            for tp in list(unread):
                position = min(await self._consumer.position(tp), spans[tp].end)
                progress.done += position - progress.positions[tp]
                progress.positions[tp] = position
                if position >= spans[tp].end:
                    self._consumer.pause(tp)
                    unread.discard(tp)


@asynccontextmanager
async def topic_reader(settings: Settings) -> AsyncIterator[TopicReader]:
    consumer = make_consumer(
        settings,
        max_partition_fetch_bytes=PARTITION_FETCH_BYTES,
        fetch_max_wait_ms=WAIT_MS,
        auto_offset_reset="earliest",
    )
    try:
        await consumer.start()
        await asyncio.sleep(0)  # lets its tasks start: aiokafka's stop() fails on a task that never started
        yield TopicReader(consumer)
    finally:
        await close_within(consumer.stop(), CLOSE_TIMEOUT_S)
