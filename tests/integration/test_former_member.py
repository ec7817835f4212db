"""A member that can no longer leave its group is taken out of it by its successor."""

import asyncio
import uuid

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient

from infra.kafka.client import create_topics, make_consumer
from infra.settings import Settings
from schemas.topics import STOCK_CHANGES
from streams.former_member import FormerMember


@pytest.fixture
def former(settings: Settings) -> FormerMember:
    (settings.thrones_state_dir / "faust").mkdir(parents=True)
    return FormerMember(settings, f"former-{uuid.uuid4().hex[:8]}")


async def test_a_successor_takes_it_out_at_once(settings: Settings, former: FormerMember) -> None:
    """Its session would last for a minute here; and it lives, so that it joins again under another name."""
    await create_topics(settings)
    consumer = make_consumer(settings, STOCK_CHANGES.name, group=former._group, session_timeout_ms=60_000)
    try:
        await consumer.start()
        member = await _joined(consumer)
        former.remember(member)
        assert member in await _members(settings, former._group)
        await former.leave()
        assert member not in await _members(settings, former._group)
        assert not former._file.exists()
    finally:
        await consumer.stop()


async def test_without_kafka_it_waits_for_the_end_of_the_session(settings: Settings, former: FormerMember) -> None:
    away = FormerMember(settings.model_copy(update={"kafka_bootstrap_servers": "127.0.0.1:9"}), former._group)
    away.remember("somebody")
    await away.leave()
    assert not away._file.exists()


async def _joined(consumer: AIOKafkaConsumer) -> str:
    async with asyncio.timeout(30):
        while not consumer.assignment():
            await consumer.getmany(timeout_ms=50)
    return str(consumer._coordinator.member_id)


async def _members(settings: Settings, group: str) -> set[str]:
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap_servers)
    await admin.start()
    try:
        (answer,) = await admin.describe_consumer_groups([group])
        return {member[0] for described in answer.groups for member in described[5]}
    finally:
        await admin.close()
