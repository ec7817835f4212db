"""Faust's consumer with two additions that faust-streaming 0.15 lacks: batched fetches, and detection of a wiped log.

A broker that lost its data starts new logs. Faust drops every record below its last read or committed offset, so a member
would see nothing until the new log is longer than the old one. A commit that was waiting for the broker may also write the
old offset to the new log, where the next member finds it.
"""

import asyncio
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, cast

from aiokafka.errors import KafkaError
from faust.transport.consumer import ensure_TP
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Transport
from faust.types import TP

from infra.kafka.client import NO_WAIT, FetchWait, set_fetch_wait
from infra.logs import get_logger
from infra.pace import Pace
from infra.watchdog import EXIT_CODE

from .inbox import BUSY_PER_S, GATHER_S

GATHERED = FetchWait(min_bytes=32 * 1024, max_wait_ms=round(1000 * GATHER_S))
SILENCE_S = 0.1  # after this long without a record, the next one is fetched at once
log = get_logger()


def _end_process(tp: TP, offset: int, committed: int) -> None:
    """End the process: a new one knows nothing of the old log."""
    log.error(
        "the log was wiped: it begins below what is committed", partition=str(tp), offset=offset, committed=committed
    )
    os._exit(EXIT_CODE)


class _GatheringThread(AIOKafkaConsumerThread):
    """Lets the broker gather records at a high rate, and answer at once at a low rate."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        app: Any = self.consumer.app  # a StageApp
        self._pace = Pace(BUSY_PER_S, part=app.part)

    async def _fetch_records(
        self,
        consumer: Any,
        active_partitions: set[TP],
        timeout: float | None = None,
        max_records: int | None = None,
    ) -> Mapping[TP, list[Any]]:
        if self._pace.busy:
            timeout = SILENCE_S
        records = await super()._fetch_records(consumer, active_partitions, timeout=timeout, max_records=max_records)
        for tp, found in records.items():
            committed = self.consumer._committed_offset.get(ensure_TP(tp))  # noqa: SLF001 - no public way to read it
            if found and committed is not None and found[0].offset < committed:
                _end_process(tp, found[0].offset, committed)
        self._pace.add(sum(map(len, records.values())), asyncio.get_running_loop().time())
        set_fetch_wait(consumer, GATHERED if self._pace.busy else NO_WAIT)
        return records


class GatheringConsumer(Consumer):
    """The consumer of a stage."""

    _begun = False

    async def perform_seek(self) -> None:
        """Seek to the committed offset, or to the beginning if that is past the end: it belonged to a wiped log."""
        await super().perform_seek()
        for tp, end in (await self.highwaters(*self.assignment())).items():
            own = ensure_TP(tp)
            at = self._read_offset.get(own)
            if at is None or at <= end:
                continue
            if self._begun:
                _end_process(own, end, at)
            log.warning("the log was wiped: reading it anew", partition=str(own), committed=at, end=end)
            await self.seek(own, (await self.earliest_offsets(tp))[tp])
            self._committed_offset[own] = None
        self._begun = True

    def member_id(self) -> str:
        """The name that Kafka gave this member; a new one at each join after a lost session."""
        return str(cast(Any, self._thread)._consumer._coordinator.member_id)  # noqa: SLF001 - no public way to read it

    def unread(self) -> int:
        """Records of our partitions beyond those that were read, by what the last fetch of each partition told."""
        consumer = getattr(self._thread, "_consumer", None)
        if consumer is None:
            return 0
        with suppress(KafkaError, AssertionError):  # a partition has just been revoked
            marks = [(consumer.highwater(tp), self._read_offset.get(ensure_TP(tp))) for tp in consumer.assignment()]
            return sum(max(0, end - (at or 0) - 1) for end, at in marks if end is not None)
        return 0

    def _new_consumer_thread(self) -> AIOKafkaConsumerThread:
        return _GatheringThread(self, loop=self.loop, beacon=self.beacon)


class GatheringTransport(Transport):
    """An app's `_new_transport` returns it."""

    Consumer = GatheringConsumer
