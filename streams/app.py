"""Shared by both stages: a Faust app whose one actor feeds the stage; it acknowledges in order and drains before it stops.

Faust reads, rebalances and commits. The stage batches, executes and acknowledges (acks.py says why).
"""

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import asyncpg
import faust
from faust.app.base import BootStrategy
from faust.types import TP

from infra import tracing
from infra.kafka.publisher import Publisher
from infra.lifecycle import DRAIN_DEADLINE_S, dump_tasks
from infra.logs import get_logger
from infra.metrics.definitions import (
    CONSUMER_BATCH,
    CONSUMER_OPEN,
    CONSUMER_PARTITIONS,
    CONSUMER_REBALANCES,
    CONSUMER_RECORDS,
)
from infra.metrics.serving import serve
from infra.metrics.vitals import report_vitals, sampled
from infra.pace import Portion
from infra.postgres.pool import connect_postgres
from infra.redis.client import connect_redis
from infra.settings import Settings, get_settings
from infra.supervision import registry
from infra.watchdog import Watchdog
from sale.books.inventory import Inventory
from sale.settlement import SettlementDesk
from schemas.codec import Headers, Undecodable, decode
from schemas.events import AnyEvent
from schemas.topics import Topic

from .acks import InOrderAcks, InWork, OpenRecord
from .backlog import QueueCount
from .dead_letters import DeadLetters
from .former_member import FormerMember
from .gathering import GatheringConsumer, GatheringTransport
from .inbox import BUSY_PER_S
from .waits import WaitReports

RECORDS_AN_ORDER = 2  # at most, written by a stage: the publisher counts as busy when the stage is
STOP_DEADLINE_S = DRAIN_DEADLINE_S + 3.0  # the supervisor kills after 25 s
_records, _batch = CONSUMER_RECORDS.make(), CONSUMER_BATCH.make()
_open, _partitions, _rebalances = CONSUMER_OPEN.make(), CONSUMER_PARTITIONS.make(), CONSUMER_REBALANCES.make()
log = get_logger()
Record = OpenRecord["faust.Event"]
Acks = InOrderAcks["faust.Event", TP]
RecordsInWork = InWork["faust.Event"]


@dataclass(slots=True)
class Resources:
    """The clients of a stage. Opened when the app starts, closed when it has drained."""

    settings: Settings
    pool: asyncpg.Pool
    inventory: Inventory
    publisher: Publisher
    desk: SettlementDesk
    dead_letters: DeadLetters
    part: Portion = field(default_factory=Portion)  # of the topic's partitions

    @classmethod
    async def open(cls, settings: Settings, part: Portion) -> "Resources":
        pool = await connect_postgres(settings)
        inventory = Inventory(connect_redis(settings, timeout_s=2.0))
        publisher = await Publisher.start(settings, RECORDS_AN_ORDER * BUSY_PER_S)
        desk = SettlementDesk(pool, inventory, publisher)
        return cls(settings, pool, inventory, publisher, desk, DeadLetters(publisher), part)

    async def close(self) -> None:
        await self.publisher.stop()
        await self.inventory.redis.aclose()
        with suppress(TimeoutError):
            await asyncio.wait_for(self.pool.close(), 3.0)


class Stage(Protocol):
    """The work of a stage. `take` gets records in offset order per partition; `run` works until cancelled."""

    def take(self, record: Record) -> None: ...

    async def run(self) -> None: ...

    def queues(self) -> tuple[QueueCount, ...]:
        """The queues in which records wait for us; the first one continues in the log."""
        ...

    async def drain(self) -> None:
        """Finish the work that has begun. Records that have not begun stay in the log."""
        ...


MakeStage = Callable[[Resources, Acks], Stage]


def count_taken(batch: list[Record]) -> None:
    """Call it once per batch."""
    _records.inc(len(batch))
    _batch.observe(len(batch))


def headers_of(record: Record) -> Headers:
    headers: Any = record.record.message.headers
    return tuple(headers.items() if isinstance(headers, dict) else headers or ())


async def decode_or_dead_letter(record: Record, dead_letters: DeadLetters) -> AnyEvent | None:
    """The event of a record, or None once its dead letter is acknowledged."""
    try:
        return decode(record.record.message.value, headers_of(record))
    except Undecodable as error:
        await dead_letter(record, dead_letters, str(error))
        return None


async def dead_letter(record: Record, dead_letters: DeadLetters, reason: str) -> None:
    message = record.record.message
    where = (message.topic, message.partition, message.offset)
    await dead_letters.send(*where, message.key, message.value, reason, tracing.trace_id_of(headers_of(record)))


class _NoWebServer(BootStrategy):
    """Disables Faust's web server. Its command line would start it on port 6066 regardless of the settings."""

    enable_web = False


class StageApp(faust.App):
    """A Faust app around one stage. It opens before the first record, and drains before the consumer leaves the group."""

    BootStrategy = _NoWebServer

    make_stage: MakeStage
    stage: Stage
    resources: Resources | None = None
    taking = False
    own: frozenset[int] = frozenset()  # partitions
    partitions: int  # of the topic
    part: Portion  # of them that are ours
    by_faust = True  # started by `faust -A ... worker`, so the app registers the process itself

    def _new_transport(self) -> Any:
        return GatheringTransport(self.conf.broker_consumer, self)

    async def on_start(self) -> None:
        settings = get_settings()
        tracing.start(settings)
        # Faust's worker would start a debugger on this signal.
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, dump_tasks)
        self.former = FormerMember(settings, self.conf.id)
        await self.former.leave()
        self.resources = await Resources.open(settings, self.part)
        self.acks: Acks = InOrderAcks()
        self.stage = self.make_stage(self.resources, self.acks)
        watchdog = Watchdog(settings, self.conf.id, lambda: self.taking and not self.acks.open, lambda: self.own)
        self._watching = asyncio.create_task(watchdog.run(), name="watchdog")
        self._telling = asyncio.create_task(self._report_vitals(), name="vitals")
        self.waits = WaitReports(
            self.resources.inventory.redis, self.conf.id, settings.thrones_member, self.partitions, self._queues
        )
        self._reporting = asyncio.create_task(self.waits.run(), name="waits")
        self._reporting.add_done_callback(self._on_work_done)  # without reports gateways would refuse all purchases
        self._work = asyncio.create_task(self.stage.run(), name="stage")
        self._work.add_done_callback(self._on_work_done)
        self.taking = True
        if self.by_faust:
            registry.register(self.conf.id, settings.thrones_member, serve(settings))
        await super().on_start()

    async def on_stop(self) -> None:
        self.taking = False
        # Faust's consumer waits for ever for a broker that is down. Unfinished records are still in the log.
        asyncio.get_running_loop().call_later(STOP_DEADLINE_S, _end_at_once)
        if self.resources is not None and not self._work.done():
            with suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_DEADLINE_S - 5.0):
                    await self.stage.drain()
        await super().on_stop()
        self.former.forget()
        if self.resources is not None:
            tasks = (self._work, self._watching, self._telling, self._reporting)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.resources.close()
        tracing.stop()

    async def _report_vitals(self) -> None:
        with sampled(lambda: _open.set(self.acks.open)):
            await report_vitals()

    def _queues(self) -> tuple[QueueCount, ...]:
        """The first queue begins in the log: what this member has not read waits there too."""
        first, *others = self.stage.queues()
        unread = cast(GatheringConsumer, self.consumer).unread() if self.own else 0
        return first._replace(waiting=first.waiting + unread), *others

    def _on_work_done(self, work: "asyncio.Task[None]") -> None:
        if not work.cancelled() and (error := work.exception()) is not None:
            log.error("stage stopped", error=repr(error))
            asyncio.get_running_loop().create_task(self.crash(error))


def _end_at_once() -> None:
    log.error("ended: it did not stop in time", deadline_s=STOP_DEADLINE_S)
    os._exit(1)


def stage_app(group: str, topic: Topic, make_stage: MakeStage) -> StageApp:
    """The Faust app for consumer group `group` on `topic`."""
    app = _configured_app(group, get_settings())
    app.make_stage = make_stage
    app.part = Portion()
    app.partitions = topic.partitions
    source = app.topic(topic.name, key_serializer="raw", value_serializer="raw")

    async def feed(stream: Any) -> None:
        async for event in stream.noack().events():
            await app.acks.room()
            if (
                app.taking and event.message.generation_id == app.consumer_generation_id
            ):  # else the partition's new owner reads it again
                app.stage.take(app.acks.take(event.message.tp, event))

    async def forget(_app: Any, revoked: set[TP], *, signal: Any = None, **_: Any) -> None:
        app.acks.revoke(revoked)
        app.own = frozenset()
        app.waits.hold(0)
        _partitions.set(0)

    async def count(_app: Any, assigned: set[TP], *, signal: Any = None, **_: Any) -> None:
        _partitions.set(len(assigned))
        app.own = frozenset(tp.partition for tp in assigned)
        app.part.of_all = len(assigned) / topic.partitions
        app.waits.hold(len(assigned))
        app.former.remember(cast(GatheringConsumer, app.consumer).member_id())
        _rebalances.inc()

    app.agent(source, name=group)(feed)
    app.on_partitions_revoked.connect(forget, weak=False)  # type: ignore[arg-type]  # its Protocol fits no function
    app.on_partitions_assigned.connect(count, weak=False)  # type: ignore[arg-type]  # nor this one's
    return app


def _configured_app(group: str, settings: Settings) -> StageApp:
    datadir = settings.thrones_state_dir / "faust" / f"{group}-{settings.thrones_member}"
    datadir.parent.mkdir(parents=True, exist_ok=True)
    return StageApp(
        group,
        broker=[f"kafka://{address}" for address in settings.kafka_bootstrap_servers.split(",")],
        store="memory://",
        datadir=datadir,
        autodiscover=False,
        web_enabled=False,
        topic_disable_leader=True,
        topic_allow_declare=False,
        worker_redirect_stdouts=False,
        stream_wait_empty=False,  # InOrderAcks: late work of a revoked partition acknowledges nothing
        consumer_auto_offset_reset="earliest",
        broker_session_timeout=10.0,
        broker_heartbeat_interval=3.0,
        broker_rebalance_timeout=30.0,
        broker_request_timeout=15.0,
        broker_commit_interval=1.0,
        broker_max_poll_records=2_000,
        broker_check_crcs=False,
    )
