"""Servers whose settings would break the promises are refused outside the development profile, each fault by its name."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from infra.redis.client import Redis
from infra.server_settings import WrongServerSettings, read_server_settings, require_server_settings
from infra.settings import Settings
from sale.operations.provision import provision
from schemas.topics import DEAD_LETTERS


@pytest.fixture
def production(settings: Settings, topics: None) -> Settings:
    return settings.model_copy(update={"thrones_profile": "production"})


async def test_our_own_servers_are_as_the_promises_need_them(production: Settings) -> None:
    await provision(production)
    asked = await read_server_settings(production)
    assert [str(setting) for setting in asked if not setting.ok] == []
    assert all(setting.value is not None for setting in asked)
    assert len(asked) > 25


async def test_a_redis_that_answers_before_it_has_written_is_refused(production: Settings, redis: Redis) -> None:
    try:
        await redis.config_set("appendfsync", "everysec")
        await redis.config_set("maxmemory-policy", "allkeys-lru")
        with pytest.raises(WrongServerSettings) as refused:
            await provision(production)
    finally:
        await redis.config_set("appendfsync", "always")
        await redis.config_set("maxmemory-policy", "noeviction")
    assert "redis: appendfsync is everysec, must be always" in str(refused.value)
    assert "redis: maxmemory-policy is allkeys-lru, must be noeviction" in str(refused.value)


async def test_a_postgres_that_forgets_commits_is_refused(production: Settings, pool: asyncpg.Pool) -> None:
    await pool.execute(f'ALTER DATABASE "{production.postgres_db}" SET synchronous_commit = off')
    with pytest.raises(WrongServerSettings, match="postgres: synchronous_commit is off, must be on"):
        await provision(production)


async def test_a_topic_whose_leader_may_forget_is_refused(production: Settings) -> None:
    async with topic_settings(production, {"unclean.leader.election.enable": "true"}):
        with pytest.raises(WrongServerSettings, match=r"topic dead-letters: unclean\.leader\.election\.enable is true"):
            await require_server_settings(production)


async def test_too_few_in_sync_replicas_are_refused_where_there_are_three_brokers(production: Settings) -> None:
    three = production.model_copy(update={"brokers": 3})
    with pytest.raises(WrongServerSettings, match=r"topic orders: min\.insync\.replicas is 1, must be 2"):
        await require_server_settings(three)


async def test_the_development_profile_is_only_warned(settings: Settings, topics: None, pool: asyncpg.Pool) -> None:
    await pool.execute(f'ALTER DATABASE "{settings.postgres_db}" SET synchronous_commit = off')
    assert [str(wrong) for wrong in await require_server_settings(settings)] == [
        "postgres: synchronous_commit is off, must be on"
    ]


@asynccontextmanager
async def topic_settings(settings: Settings, changed: dict[str, str]) -> AsyncIterator[None]:
    """As somebody's hand would set them; afterwards as the topic was made."""
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap_servers)
    await admin.start()
    made = {"message.timestamp.type": "LogAppendTime", "retention.ms": str(DEAD_LETTERS.retention_ms)}
    try:
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, DEAD_LETTERS.name, made | changed)])
        yield
    finally:
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, DEAD_LETTERS.name, made)])
        await admin.close()
