"""What a group's coordinator says of its members."""

import asyncio
import uuid

from infra.kafka.client import make_consumer
from infra.kafka.offsets import Offsets
from infra.settings import Settings
from schemas.topics import ORDERS


async def test_the_partitions_of_a_group_are_held_while_it_has_a_member_and_by_nobody_else(
    redis_settings: Settings, topics: None
) -> None:
    group = f"members-{uuid.uuid4().hex[:8]}"
    offsets = Offsets(redis_settings)
    consumer = make_consumer(redis_settings, group=group)
    consumer.subscribe([ORDERS.name])
    try:
        assert await offsets.held(group, ORDERS) == set()
        await consumer.start()
        async with asyncio.timeout(30):
            while not consumer.assignment():
                await consumer.getmany(timeout_ms=100)
        assert await offsets.held(group, ORDERS) == set(range(ORDERS.partitions))
        await consumer.stop()
        assert await offsets.held(group, ORDERS) == set()
    finally:
        await consumer.stop()
        await offsets.close()
