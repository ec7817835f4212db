"""A stage as a process of its own, on a topic and in a group of its own.

`python -m tests.integration.stage_process KIND GROUP TOPIC PARTITIONS`. KIND `order` and `payment` are the real stages. The
others do one unit of work a record, which is to write its value to the file WORK; a record that starts with "slow" is worked
on until the file RELEASE exists. `in-order` acknowledges as our stages do; `concurrent` is what one would write first, faust's
own concurrency and acknowledgements, on the same settings. Lower bounds may stand in the environment: LIMIT of dead letters,
MAX_OPEN of records in work.
"""

import asyncio
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import faust

import streams.acks
import streams.app
from schemas.topics import CONSUMED_BY, FOR_EVER, Topic
from streams.app import Acks, Record, Resources, StageApp, stage_app
from streams.backlog import QueueCount
from streams.dead_letters import DeadLetters
from streams.order_stage import OrderStage
from streams.payment_stage import PaymentStage

CONCURRENCY = 100


def released() -> bool:
    return Path(os.environ["RELEASE"]).exists()


def write_down(value: bytes) -> None:
    with Path(os.environ["WORK"]).open("ab") as done:
        done.write(value + b"\n")


async def work(value: bytes) -> None:
    """The effect: one line in a file, durable against the death of this process."""
    while value.startswith(b"slow") and not released():  # noqa: ASYNC110 - another process releases it
        await asyncio.sleep(0.02)
    write_down(value)


class InOrder:
    """A stage of tasks: every record at once, acknowledged by InOrderAcks."""

    def __init__(self, resources: Resources, acks: Acks) -> None:
        self._acks = acks
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, record: Record) -> None:
        task = asyncio.create_task(self._work(record))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self, record: Record) -> None:
        await work(record.record.message.value or b"")
        self._acks.finish([record])

    async def run(self) -> None:
        await asyncio.Event().wait()

    def queues(self) -> tuple[QueueCount, ...]:
        return (QueueCount(self._acks.open, self._acks.finished),)

    async def drain(self) -> None:
        """Nothing to finish: what is open is read again."""


def concurrent_app(group: str, topic: Topic) -> StageApp:
    app = stage_app(group, topic, InOrder)
    app.agents.clear()

    async def handle(stream: Any) -> None:
        async for value in stream:
            await work(value)

    source = app.topic(topic.name, key_serializer="raw", value_serializer="raw")
    app.agent(source, name=f"{group}-concurrent", concurrency=CONCURRENCY)(handle)
    return app


def main(kind: str, group: str, name: str, partitions: str) -> None:
    topic = Topic(name, "any", int(partitions), FOR_EVER)
    CONSUMED_BY[group] = topic
    limit = int(os.environ.get("LIMIT", "1000"))
    streams.acks.MAX_OPEN = int(os.environ.get("MAX_OPEN", streams.acks.MAX_OPEN))
    streams.acks.RESUME_BELOW = streams.acks.MAX_OPEN // 2
    streams.app.DeadLetters = partial(DeadLetters, limit=limit)  # type: ignore[assignment,attr-defined]
    if kind == "concurrent":
        app = concurrent_app(group, topic)
    else:
        kinds: dict[str, Any] = {"in-order": InOrder, "order": OrderStage, "payment": PaymentStage}
        app = stage_app(group, topic, kinds[kind])
    app.by_faust = False
    app.conf.broker_session_timeout = 6.0  # the least a broker allows: a killed member is missed for so long
    app.conf.broker_heartbeat_interval = 1.0
    worker = faust.Worker(app, loglevel="WARNING", override_logging=False, redirect_stdouts=False, quiet=True)
    worker.execute_from_commandline()


if __name__ == "__main__":
    main(*sys.argv[1:])
