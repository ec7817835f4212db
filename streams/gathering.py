"""Faust's consumer with fetches that gather: faust-streaming 0.15 fixes what a fetch waits for, and tells no setting for it."""

from collections.abc import Mapping
from typing import Any

from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Transport
from faust.types import TP

from infra.kafka import AT_ONCE, Gathering, gather

GATHERED = Gathering(min_bytes=8 * 1024, max_wait_ms=8)
SILENCE_S = 0.025  # so long without a record, and the next one is not kept waiting


class _GatheringThread(AIOKafkaConsumerThread):
    """Lets the broker gather records while they come, and hand over the first one after a silence at once."""

    _gathering = False

    async def _fetch_records(
        self,
        consumer: Any,
        active_partitions: set[TP],
        timeout: float | None = None,
        max_records: int | None = None,
    ) -> Mapping[TP, list[Any]]:
        if self._gathering:
            timeout = SILENCE_S
        records = await super()._fetch_records(consumer, active_partitions, timeout=timeout, max_records=max_records)
        self._gathering = bool(records)
        gather(consumer, GATHERED if self._gathering else AT_ONCE)
        return records


class _GatheringConsumer(Consumer):
    def _new_consumer_thread(self) -> AIOKafkaConsumerThread:
        return _GatheringThread(self, loop=self.loop, beacon=self.beacon)


class GatheringTransport(Transport):
    """What an app's `_new_transport` returns."""

    Consumer = _GatheringConsumer
