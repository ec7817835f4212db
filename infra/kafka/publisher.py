"""Publishes records with one idempotent producer (acks=all) per process and one batch in flight per partition.

`publish` queues a record at once; its future is done when all in-sync replicas have acknowledged the record.
Records that arrive for a partition while its batch is in flight form the next batch.
"""

import asyncio
import os
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from zlib import crc32

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, KafkaTimeoutError, MessageSizeTooLargeError

from infra.lifecycle import cancelled, close_within
from infra.logs import get_logger
from infra.metrics.definitions import PUBLISHER_ACKNOWLEDGED, PUBLISHER_REPLACED, PUBLISHER_UNPUBLISHED
from infra.metrics.vitals import sampled
from infra.pace import Pace
from infra.settings import Settings
from schemas.codec import VERSION_HEADER, Headers
from schemas.topics import Topic

LINGER_S = 0.004  # while busy: a produce request costs more than a record
BUSY_PER_S = 150.0  # records: at a lower rate a linger ends before the next record comes
BATCH_MAX_BYTES = 256 * 1024
RECORD_MAX_BYTES = 1_000_000  # a broker takes 1 MiB, including its own overhead per record
REQUEST_TIMEOUT_S = 15.0
DELIVERY_TIMEOUT_S = 30.0  # aiokafka's idempotent producer retries for ever, even what a wiped broker can never take
POLL_INTERVAL_S = 5.0
STOP_TIMEOUT_S = 10.0  # aiokafka's own stop() never ends while the broker is down
HEADERS = (VERSION_HEADER,)

_unpublished, _acknowledged = PUBLISHER_UNPUBLISHED.make(), PUBLISHER_ACKNOWLEDGED.make()
_replaced = PUBLISHER_REPLACED.make()
log = get_logger()


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of a key: CRC-32, like librdkafka's `consistent` partitioner (CRC-32 is C; murmur2 would be Python)."""
    return crc32(key) % partitions


@dataclass(slots=True, eq=False)
class _Record:
    topic: str
    key: bytes
    value: bytes
    headers: Headers
    done: "asyncio.Future[None]"


@dataclass(slots=True, eq=False)
class _PartitionQueue:
    """One partition has at most one batch in flight, so its records stay in order even if that batch fails."""

    topic: str
    partition: int
    waiting: deque[_Record] = field(default_factory=deque)
    in_flight: list[_Record] = field(default_factory=list)
    sent_at: float = 0.0  # loop time


class Publisher:
    """Records of one key stay in order; each is written at least once.

    While the broker is down, records wait here (`unpublished` counts them). A producer that the broker fences off, or that
    has lost its sequence, is replaced, and its undelivered records are sent again. A future fails only for a record that
    is too large, or when the publisher stops first.
    """

    def __init__(self, settings: Settings, busy_per_s: float = BUSY_PER_S) -> None:
        self._settings = settings
        self._queue: deque[_Record] = deque()  # not yet in the queue of a partition
        self._partitions: dict[tuple[str, int], _PartitionQueue] = {}
        self._wake = asyncio.Event()
        self._linger: asyncio.TimerHandle | None = None
        self._pace = Pace(busy_per_s, LINGER_S)
        self._producer: AIOKafkaProducer | None = None
        self._pump: asyncio.Task[None] | None = None
        self._broken = False
        self.unpublished = 0

    @classmethod
    async def start(cls, settings: Settings, busy_per_s: float = BUSY_PER_S) -> "Publisher":
        """A publisher that connects in the background, so a process can start while Kafka is down. From `busy_per_s` on it
        lingers."""
        publisher = cls(settings, busy_per_s)
        publisher._pump = asyncio.create_task(publisher._run(), name="publisher")
        publisher._pump.add_done_callback(_end_process)
        return publisher

    def publish(
        self, topic: Topic, key: str | bytes, value: bytes, headers: Headers = HEADERS
    ) -> "asyncio.Future[None]":
        loop = asyncio.get_running_loop()
        record = _Record(
            topic.name, key.encode() if isinstance(key, str) else key, value, headers, loop.create_future()
        )
        self.unpublished += 1
        if len(record.key) + len(value) > RECORD_MAX_BYTES:
            self._finish(record, MessageSizeTooLargeError(f"{len(value)} bytes of value"))
            return record.done
        self._queue.append(record)
        self._pace.add(1, loop.time())
        if self._linger is None:
            self._linger = loop.call_later(self._pace.wait_s, self._end_linger)
        return record.done

    async def publish_all(
        self, records: Iterable[tuple[Topic, str | bytes, bytes]], headers: Mapping[str | bytes, Headers] | None = None
    ) -> None:
        """Publish and wait for every acknowledgement, without a time limit. `headers`: for keys with headers of their own."""
        own = headers or {}
        waiting = [
            self.publish(topic, key, value, own.get(key, HEADERS) if own else HEADERS) for topic, key, value in records
        ]
        for delivered in waiting:  # cheaper than gather: most are done already
            await delivered

    async def stop(self) -> None:
        """Deliver the waiting records for at most STOP_TIMEOUT_S; the rest fails, and the relay publishes it later."""
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_TIMEOUT_S):
                while self.unpublished:  # noqa: ASYNC110 - once, when the process ends
                    await asyncio.sleep(0.01)
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)
        await self._discard_producer()
        while self._queue:
            self._finish(self._queue.popleft(), KafkaTimeoutError("the publisher has stopped"))

    def _end_linger(self) -> None:
        self._linger = None
        self._wake.set()

    async def _run(self) -> None:
        with sampled(lambda: _unpublished.set(self.unpublished)):
            await self._deliver()

    async def _deliver(self) -> None:
        while not cancelled():
            if self._producer is None or self._broken:
                await self._replace_producer()
            if self._producer is None:
                continue
            self._wake.clear()
            try:
                async with asyncio.timeout(REQUEST_TIMEOUT_S):
                    await self._sort(self._producer)
                    for queue in self._partitions.values():
                        if queue.waiting and not queue.in_flight:
                            await self._send(self._producer, queue)
            except (KafkaError, TimeoutError) as error:
                self._break(error)
                await asyncio.sleep(0.1)
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_INTERVAL_S):
                    await self._wake.wait()
            self._check_deliveries()

    def _check_deliveries(self) -> None:
        oldest = asyncio.get_running_loop().time() - DELIVERY_TIMEOUT_S
        if any(queue.in_flight and queue.sent_at < oldest for queue in self._partitions.values()):
            self._break(KafkaTimeoutError(f"no answer within {DELIVERY_TIMEOUT_S:.0f} s"))

    async def _sort(self, producer: AIOKafkaProducer) -> None:
        """Move the waiting records into the queues of their partitions."""
        counts: dict[str, int] = {}
        while self._queue:
            record = self._queue[0]
            if record.topic not in counts:
                counts[record.topic] = len(await producer.partitions_for(record.topic))
            where = (record.topic, partition_of(record.key, counts[record.topic]))
            queue = self._partitions.get(where)
            if queue is None:
                queue = self._partitions[where] = _PartitionQueue(*where)
            queue.waiting.append(self._queue.popleft())

    async def _send(self, producer: AIOKafkaProducer, queue: _PartitionQueue) -> None:
        batch = producer.create_batch()
        while queue.waiting:
            record = queue.waiting[0]
            if batch.append(timestamp=None, key=record.key, value=record.value, headers=list(record.headers)) is None:
                break  # full
            queue.in_flight.append(queue.waiting.popleft())
        batch.close()
        queue.sent_at = asyncio.get_running_loop().time()
        delivery = await producer.send_batch(batch, queue.topic, partition=queue.partition)
        delivery.add_done_callback(partial(self._delivered, queue))

    def _delivered(self, queue: _PartitionQueue, delivery: "asyncio.Future[Any]") -> None:
        error = asyncio.CancelledError() if delivery.cancelled() else delivery.exception()
        if self._partitions.get((queue.topic, queue.partition)) is not queue:
            return  # its producer was replaced, and the records are sent again
        if error is not None and not isinstance(error, MessageSizeTooLargeError):
            self._break(error)  # they stay in flight: the next producer sends them again, and readers drop the copy
            return
        delivered, queue.in_flight = queue.in_flight, []
        for record in delivered:
            self._finish(record, error)
        if error is None:
            _acknowledged.labels(queue.topic).inc(len(delivered))
        if queue.waiting:
            self._wake.set()

    async def _replace_producer(self) -> None:
        await self._discard_producer()
        producer = AIOKafkaProducer(
            bootstrap_servers=self._settings.kafka_bootstrap_servers,
            client_id=f"{self._settings.thrones_role}-{self._settings.thrones_member}",
            enable_idempotence=True,
            acks="all",
            max_batch_size=BATCH_MAX_BYTES,
            request_timeout_ms=int(REQUEST_TIMEOUT_S * 1000),
            retry_backoff_ms=50,
        )
        started = False
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                await producer.start()
            started = True
        except (KafkaError, OSError, TimeoutError) as error:
            log.warning("kafka unreachable", error=str(error))
        finally:
            if not started:  # also when cancelled: it may hold a connection already
                await close_within(producer.stop(), 2.0)
        if not started:
            await asyncio.sleep(0.5)
            return
        self._producer, self._broken = producer, False

    async def _discard_producer(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await close_within(producer.stop(), 5.0)
        # Without an acknowledgement the outcome is unknown: the next producer sends these again, before newer records.
        for queue in self._partitions.values():
            self._queue.extendleft(reversed([*queue.in_flight, *queue.waiting]))
        self._partitions.clear()

    def _break(self, error: BaseException) -> None:
        if not self._broken:
            _replaced.inc()
            log.warning("producer is replaced", error=repr(error))
        self._broken = True
        self._wake.set()

    def _finish(self, record: _Record, error: BaseException | None) -> None:
        self.unpublished -= 1
        if record.done.done():
            return
        if error is None:
            record.done.set_result(None)
        else:
            record.done.set_exception(error)
            record.done.exception()  # marks it as retrieved: the caller may have gone


def _end_process(pump: "asyncio.Task[None]") -> None:
    """No task awaits the pump, and without it every publish would wait for ever. So its own error ends the process."""
    if not pump.cancelled() and (error := pump.exception()) is not None:
        log.error("the publisher broke down", error=repr(error))
        os._exit(os.EX_SOFTWARE)
