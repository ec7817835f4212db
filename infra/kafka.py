"""Kafka as we use it: one idempotent publisher a process, consumers that commit only by hand, offsets and topics by admin.

`publish` hands a record over at once; its future ends when the broker has acknowledged it on all in-sync replicas.
"""

import asyncio
import os
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import stamina
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import (
    CoordinatorLoadInProgressError,
    GroupCoordinatorNotAvailableError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    NotCoordinatorForGroupError,
    TopicAlreadyExistsError,
    for_code,
)

from infra.logs import get_logger
from schemas import topics
from schemas.codec import VERSION_HEADER, Headers
from schemas.topics import Topic

from .lifecycle import cancelled
from .settings import Settings

LINGER_MS = 4  # produce requests cost more than records
REQUEST_TIMEOUT_MS = 15_000
STOP_TIMEOUT_S = 10.0  # aiokafka's own stop() never ends while the broker is down
HEADERS = (VERSION_HEADER,)
NO_COORDINATOR = (GroupCoordinatorNotAvailableError, CoordinatorLoadInProgressError, NotCoordinatorForGroupError)

log = get_logger()


@dataclass(slots=True, eq=False)
class _Record:
    topic: str
    key: bytes
    value: bytes
    headers: tuple[tuple[str, bytes], ...]
    done: "asyncio.Future[None]"


class Publisher:
    """Own idempotent producer (acks=all). Records of one key stay in order; each is written at least once.

    While the broker is away records wait here, `unpublished` of them; a producer that the broker fences off or that lost
    its sequence is replaced, and what it had not delivered is sent again. A future fails only for a record that can never
    be written (too large) or when the publisher stops first.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._queue: deque[_Record] = deque()
        self._in_flight: dict[_Record, None] = {}  # given to the producer and not delivered yet, in that order
        self._wake = asyncio.Event()
        self._producer: AIOKafkaProducer | None = None
        self._pump: asyncio.Task[None] | None = None
        self._broken = False
        self.unpublished = 0

    @classmethod
    async def start(cls, settings: Settings) -> "Publisher":
        """A publisher that connects in the background: a process may start while Kafka is away."""
        publisher = cls(settings)
        publisher._pump = asyncio.create_task(publisher._run(), name="publisher")
        publisher._pump.add_done_callback(_end_process)
        return publisher

    def publish(
        self, topic: Topic, key: str | bytes, value: bytes, headers: tuple[tuple[str, bytes], ...] = HEADERS
    ) -> "asyncio.Future[None]":
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(_Record(topic.name, key.encode() if isinstance(key, str) else key, value, headers, done))
        self.unpublished += 1
        self._wake.set()
        return done

    async def publish_all(
        self, records: Iterable[tuple[Topic, str | bytes, bytes]], headers: Mapping[str | bytes, Headers] | None = None
    ) -> None:
        """Publish and wait for every acknowledgement, however long that takes. `headers`: of the keys that have others."""
        own = headers or {}
        waiting = [
            self.publish(topic, key, value, own.get(key, HEADERS) if own else HEADERS) for topic, key, value in records
        ]
        if waiting:
            await asyncio.gather(*waiting)

    async def stop(self) -> None:
        """Deliver what is waiting, for at most STOP_TIMEOUT_S; the rest fails and is the relay's to finish."""
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_TIMEOUT_S):
                while self.unpublished:  # noqa: ASYNC110 - once in a process' life, at its end
                    await asyncio.sleep(0.01)
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)
        await self._discard_producer()
        while self._queue:
            self._finish(self._queue.popleft(), KafkaTimeoutError("the publisher has stopped"))

    async def _run(self) -> None:
        while not cancelled():
            if self._producer is None or self._broken:
                await self._replace_producer()
            while self._queue and self._producer is not None and not self._broken:
                await self._send(self._queue.popleft())
            self._wake.clear()
            if not self._queue and not self._broken:
                await self._wake.wait()

    async def _replace_producer(self) -> None:
        await self._discard_producer()
        producer = AIOKafkaProducer(
            bootstrap_servers=self._settings.kafka_bootstrap_servers,
            client_id=f"{self._settings.thrones_role}-{self._settings.thrones_member}",
            enable_idempotence=True,
            acks="all",
            linger_ms=LINGER_MS,
            max_batch_size=256 * 1024,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
            retry_backoff_ms=50,
        )
        started = False
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_MS / 1000):
                await producer.start()
            started = True
        except (KafkaError, OSError, TimeoutError) as error:
            log.warning("kafka unreachable", error=str(error))
        finally:
            if not started:  # also when cancelled: it may hold a connection already
                with suppress(TimeoutError, KafkaError):
                    await asyncio.wait_for(producer.stop(), 2.0)
        if not started:
            await asyncio.sleep(0.5)
            return
        self._producer, self._broken = producer, False

    async def _discard_producer(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            try:
                await asyncio.wait_for(producer.stop(), 5.0)
            except (TimeoutError, KafkaError) as error:
                log.warning("producer did not stop", error=repr(error))
        # What it never told us about is unknown, not failed: its successor sends it again, before anything newer.
        self._queue.extendleft(reversed(self._in_flight))
        self._in_flight.clear()

    async def _send(self, record: _Record) -> None:
        producer = self._producer
        if producer is None:
            self._queue.appendleft(record)
            return
        try:
            delivery = await producer.send(record.topic, record.value, record.key, headers=list(record.headers))
        except asyncio.CancelledError:  # the publisher stops, and says of each record that it was left over
            self._queue.appendleft(record)
            raise
        except MessageSizeTooLargeError as error:
            self._finish(record, error)
        except KafkaTimeoutError:  # its partition's buffer is full, so it was not taken: the broker is slow or away
            self._queue.appendleft(record)
        except KafkaError as error:
            self._queue.appendleft(record)
            self._break(error)
            await asyncio.sleep(0.1)
        else:
            self._in_flight[record] = None
            delivery.add_done_callback(lambda future: self._delivered(record, future))

    def _delivered(self, record: _Record, delivery: "asyncio.Future[Any]") -> None:
        error = asyncio.CancelledError() if delivery.cancelled() else delivery.exception()
        if record not in self._in_flight:
            return  # its producer was replaced, and the record queued again
        if error is not None and not isinstance(error, MessageSizeTooLargeError):
            self._break(error)  # stays in flight: sent again by the next producer (readers drop the copy)
            return
        del self._in_flight[record]
        self._finish(record, error)

    def _break(self, error: BaseException) -> None:
        if not self._broken:
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
            record.done.exception()  # whoever still waits is told; nobody has to


def _end_process(pump: "asyncio.Task[None]") -> None:
    """Nobody awaits the pump, and without it every publish would wait for ever: an error of its own ends the process."""
    if not pump.cancelled() and (error := pump.exception()) is not None:
        log.error("the publisher broke down", error=repr(error))
        os._exit(os.EX_SOFTWARE)


def make_consumer(settings: Settings, *names: str, group: str | None = None, **overrides: Any) -> AIOKafkaConsumer:
    """A consumer that is not started yet, reads raw bytes and never commits by itself."""
    options: dict[str, Any] = {
        "bootstrap_servers": settings.kafka_bootstrap_servers,
        "client_id": f"{settings.thrones_role}-{settings.thrones_member}",
        "group_id": group,
        "enable_auto_commit": False,
        "auto_offset_reset": "earliest",
        "session_timeout_ms": 10_000,
        "heartbeat_interval_ms": 3_000,
        "request_timeout_ms": REQUEST_TIMEOUT_MS,
        "fetch_min_bytes": 1,
        "fetch_max_wait_ms": 50,
        "metadata_max_age_ms": 30_000,
    }
    return AIOKafkaConsumer(*names, **(options | overrides))


class Offsets:
    """What groups have committed and where logs begin and end. One admin and one group-less consumer, lazily connected."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._admin: AIOKafkaAdminClient | None = None
        self._consumer: AIOKafkaConsumer | None = None
        self._connecting = asyncio.Lock()

    async def committed(self, group: str, topic: Topic) -> dict[int, int]:
        """Next offset to process by partition; 0 where the group has not committed yet. Raises KafkaError or OSError."""
        await self._connect()
        assert self._admin is not None
        # The first question ever makes the broker create its offsets topic, and it answers "not available" meanwhile.
        async for attempt in stamina.retry_context(on=NO_COORDINATOR, attempts=None, timeout=10.0, wait_max=0.5):
            with attempt:
                known = await self._admin.list_consumer_group_offsets(group)
        by_partition = {tp.partition: meta.offset for tp, meta in known.items() if tp.topic == topic.name}
        return {p: max(by_partition.get(p, 0), 0) for p in await self.partitions(topic)}

    async def ends(self, topic: Topic) -> dict[int, int]:
        """The offset the next record will get, by partition."""
        consumer = await self._connect()
        return _by_partition(await consumer.end_offsets(await self._of(topic)))

    async def begins(self, topic: Topic) -> dict[int, int]:
        """The first offset still kept, by partition."""
        consumer = await self._connect()
        return _by_partition(await consumer.beginning_offsets(await self._of(topic)))

    async def partitions(self, topic: Topic) -> list[int]:
        return [tp.partition for tp in await self._of(topic)]

    async def close(self) -> None:
        for client in (self._consumer.stop if self._consumer else None, self._admin.close if self._admin else None):
            if client is not None:
                with suppress(TimeoutError, KafkaError, OSError):
                    await asyncio.wait_for(client(), 5.0)
        self._consumer = self._admin = None

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
                except BaseException:  # also when the asker has given up: both may hold connections already
                    await asyncio.gather(admin.close(), consumer.stop(), return_exceptions=True)
                    raise
                consumer.pause(*consumer.assignment())  # a fetch that waits for data would hold up every question
                self._admin, self._consumer = admin, consumer
            return self._consumer


def _by_partition(offsets: Mapping[TopicPartition, int]) -> dict[int, int]:
    return {tp.partition: offset for tp, offset in offsets.items()}


async def create_topics(settings: Settings) -> None:
    """Create what is missing of `topics.ALL`; what exists is left as it is. Raises KafkaError."""
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap_servers)
    await admin.start()
    try:
        reply = await admin.create_topics([_new_topic(topic, settings) for topic in topics.ALL])
        for name, code, *_ in reply.topic_errors:
            error = for_code(code)
            if code and error is not TopicAlreadyExistsError:
                raise error(f"topic {name}")
    except TopicAlreadyExistsError:
        return
    finally:
        await admin.close()


def _new_topic(topic: Topic, settings: Settings) -> NewTopic:
    return NewTopic(
        name=topic.name,
        num_partitions=topic.partitions,
        replication_factor=settings.replication_factor,
        topic_configs={
            "retention.ms": str(topic.retention_ms),
            "cleanup.policy": "delete",
            "message.timestamp.type": "LogAppendTime",
            "min.insync.replicas": "2" if settings.replication_factor > 2 else "1",
        },
    )
