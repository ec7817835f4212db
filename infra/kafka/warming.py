"""Warms up the brokers with a scratch topic, and deletes it: a JVM that has just started interprets what it later compiles.

The first thousand orders of a sale would otherwise wait for that.
"""

import asyncio
import math
import time
from contextlib import suppress

from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import TopicAlreadyExistsError, for_code

from infra.kafka.client import make_consumer, new_topic
from infra.kafka.publisher import Publisher
from infra.settings import Settings
from schemas.topics import Topic

SCRATCH = Topic("warm-up", "any", 6, retention_ms=60_000)
RECORD = bytes(400)  # about an order.placed
AT_ONCE = 12  # records: two a partition
NEVER_BUSY = math.inf  # the publisher never lingers: it is requests that warm up, not records
GIVE_UP_S = 30.0


async def warm_up(settings: Settings, seconds: float) -> int:
    """Write and read a scratch topic for so long; how many records were read. Raises KafkaError or TimeoutError."""
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap_servers)
    await admin.start()
    try:
        async with asyncio.timeout(seconds + GIVE_UP_S):
            await _create(admin, settings)
            try:
                return await _exercise(settings, seconds)
            finally:
                await admin.delete_topics([SCRATCH.name])
    finally:
        await admin.close()


async def _create(admin: AIOKafkaAdminClient, settings: Settings) -> None:
    """The topic may be there: an earlier run was killed."""
    with suppress(TopicAlreadyExistsError):
        reply = await admin.create_topics([new_topic(SCRATCH, settings)])
        for _name, code, *_ in reply.topic_errors:
            if code:
                raise for_code(code)(SCRATCH.name)


async def _exercise(settings: Settings, seconds: float) -> int:
    publisher = await Publisher.start(settings, NEVER_BUSY)
    consumer = make_consumer(settings, SCRATCH.name)  # in no group: clients cannot delete one
    writing = asyncio.create_task(_write(publisher, seconds))
    try:
        await consumer.start()
        return await _read(consumer, writing)
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        await consumer.stop()
        await publisher.stop()


async def _write(publisher: Publisher, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        await asyncio.gather(*(publisher.publish(SCRATCH, str(n).encode(), RECORD) for n in range(AT_ONCE)))


async def _read(consumer: AIOKafkaConsumer, writing: "asyncio.Task[None]") -> int:
    """Read until the writer has ended; its error, if any, is raised."""
    read = 0
    while not writing.done():
        read += sum(map(len, (await consumer.getmany(timeout_ms=50)).values()))
    writing.result()
    return read
