"""Projects the topic `order-status` into the read model in Redis and deletes settled entries: their status is on the log.

It works in batches, one Redis pipeline each, at least once: a lower or equal rank never replaces a higher rank, so reading a
record twice is harmless.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Any

from aiokafka import ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalGenerationError, KafkaError

from infra import tracing
from infra.kafka.client import NO_WAIT, FetchWait, make_consumer, set_fetch_wait
from infra.lifecycle import Stop, background, cancelled, close_within
from infra.logs import get_logger
from infra.metrics.definitions import (
    CONSUMER_BATCH,
    CONSUMER_PARTITIONS,
    CONSUMER_REBALANCES,
    CONSUMER_RECORDS,
    STATUS_PROJECTED,
)
from infra.redis.client import RedisError, connect_redis
from infra.settings import Settings
from infra.waits import retry_until_ok
from infra.watchdog import Watchdog
from sale.books.inventory import Inventory
from schemas.clock import now_ms
from schemas.codec import Undecodable, decode
from schemas.events import OrderStatusChanged
from schemas.topics import ORDER_STATUS, PROJECTOR_GROUP

MAX_BATCH = 1_000
GATHERED = FetchWait(min_bytes=32 * 1024, max_wait_ms=50)  # how stale the read model may be
COMMIT_INTERVAL_S = 0.25  # far below the 2 s after which the relay takes an announcement for stranded
POLL_MS = 250  # the last projected batch is committed after at most this silence
STOP_TIMEOUT_S = 5.0

_records, _batch, _projected = CONSUMER_RECORDS.make(), CONSUMER_BATCH.make(), STATUS_PROJECTED.make()
_partitions, _rebalances = CONSUMER_PARTITIONS.make(), CONSUMER_REBALANCES.make()
log = get_logger()


async def run(settings: Settings, stop: Stop) -> None:
    """Projects until asked to stop. If the broker removes this member, it raises the error, and the supervisor restarts it."""
    tracing.start(settings)
    redis = connect_redis(settings, timeout_s=2.0)
    consumer = make_consumer(settings, group=PROJECTOR_GROUP)
    consumer.subscribe([ORDER_STATUS.name], listener=_Assignments())
    watchdog = Watchdog(settings, PROJECTOR_GROUP, lambda: True, lambda: {tp.partition for tp in consumer.assignment()})
    try:
        async with background(_project(consumer, Inventory(redis)), watchdog.run()):
            await stop.wait()  # ends any wait for a server; uncommitted records are read again
    finally:
        await close_within(consumer.stop(), STOP_TIMEOUT_S)
        await redis.aclose()
        tracing.stop()


async def _project(consumer: Any, inventory: Inventory) -> None:
    await retry_until_ok("kafka", (KafkaError, OSError), consumer.start)
    committed_at, uncommitted = time.monotonic(), False
    while not cancelled():
        batches = await consumer.getmany(timeout_ms=POLL_MS, max_records=MAX_BATCH)
        set_fetch_wait(consumer, GATHERED if batches else NO_WAIT)
        events = [event for records in batches.values() for record in records if (event := _read(record))]
        if events:
            spans = [] if tracing.on is None else _follow(tracing.on, batches.values())
            await retry_until_ok("redis", (RedisError, OSError), inventory.project, events)
            _count(events)
            for span in spans:
                span.end()
        uncommitted = uncommitted or bool(batches)
        if uncommitted and time.monotonic() - committed_at >= COMMIT_INTERVAL_S:
            uncommitted = not await _commit(consumer)
            committed_at = time.monotonic()


class _Assignments(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        _partitions.set(0)

    def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        _partitions.set(len(assigned))
        _rebalances.inc()


def _count(events: list[OrderStatusChanged]) -> None:
    _records.inc(len(events))
    _batch.observe(len(events))
    _projected.observe(now_ms(), (event.at_ms for event in events))


async def _commit(consumer: Any) -> bool:
    """False if the broker did not take the commit: it must be retried, even if no more records come.

    Until then the group appears to lag, so the relay does not take its orders for stranded.
    """
    try:
        await consumer.commit()
    except (CommitFailedError, IllegalGenerationError) as error:
        log.info("partitions moved before a commit; their records are read again", error=repr(error))
    except KafkaError as error:
        if not error.retriable:
            raise
        log.warning("could not commit; it is tried again", error=repr(error))
        return False
    return True


def _follow(on: tracing.Tracing, batches: Iterable[Sequence[ConsumerRecord]]) -> list[tracing.Span]:
    steps = (on.follow("project status", record.headers) for records in batches for record in records)
    return [span for span in steps if span is not None]


def _read(record: ConsumerRecord) -> OrderStatusChanged | None:
    """Skips and logs a record that is no status: it cannot be ours, and nothing here changes the books."""
    try:
        event = decode(record.value, tuple(record.headers))
    except Undecodable as error:
        log.warning("undecodable status", partition=record.partition, offset=record.offset, reason=str(error)[:200])
        return None
    return event if isinstance(event, OrderStatusChanged) else None
