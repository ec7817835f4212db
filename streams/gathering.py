"""Faust's consumer with fetches that gather: faust-streaming 0.15 fixes what a fetch waits for, and tells no setting for it."""

import asyncio
from collections.abc import Mapping
from typing import Any

from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Transport
from faust.types import TP

from infra.kafka import AT_ONCE, Gathering, gather
from infra.pace import Pace

BUSY_PER_S = 300.0  # records
GATHERED = Gathering(min_bytes=32 * 1024, max_wait_ms=25)
SILENCE_S = 0.1  # so long without a record, and the next one is not kept waiting


class _GatheringThread(AIOKafkaConsumerThread):
    """Lets the broker gather records while many come, and hand over each one at once while few do."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._pace = Pace(BUSY_PER_S)

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
        self._pace.note(sum(map(len, records.values())), asyncio.get_running_loop().time())
        gather(consumer, GATHERED if self._pace.busy else AT_ONCE)
        return records


class _GatheringConsumer(Consumer):
    def _new_consumer_thread(self) -> AIOKafkaConsumerThread:
        return _GatheringThread(self, loop=self.loop, beacon=self.beacon)


class GatheringTransport(Transport):
    """What an app's `_new_transport` returns."""

    Consumer = _GatheringConsumer
