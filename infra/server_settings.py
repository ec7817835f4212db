"""Checks the server settings on which the guarantees depend, by asking the servers themselves.

Outside the development profile `provision` refuses servers with wrong settings; `thrones doctor` shows every setting.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import asyncpg
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from infra.redis.client import connect_redis
from schemas import topics

from .postgres.pool import CONNECT_TIMEOUT_S
from .settings import Settings

KAFKA_TIMEOUT_S = 15.0
# appendfsync: an acknowledged reservation is on disk. noeviction: a held entry is never dropped to make room.
REDIS = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
POSTGRES = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
# Watermarks compare append times. An unclean leader would lose acknowledged records; compaction would remove some.
TOPIC = {
    "message.timestamp.type": "LogAppendTime",
    "unclean.leader.election.enable": "false",
    "cleanup.policy": "delete",
}
BROKER = {"auto.create.topics.enable": "false"}  # else a misspelt name makes a topic, and one with default settings
STRONGER = {"synchronous_commit": {"remote_write", "remote_apply"}}


class Setting(NamedTuple):
    """One setting of one server. `value` is None if the server has no such setting (Redpanda lacks some of Kafka's)."""

    server: str
    name: str
    value: str | None
    wanted: str

    @property
    def ok(self) -> bool:
        if self.name == "min.insync.replicas" and self.value is not None:
            return int(self.value) >= int(self.wanted)
        return self.value in (None, self.wanted) or self.value in STRONGER.get(self.name, ())

    def __str__(self) -> str:
        return f"{self.server}: {self.name} is {self.value}, must be {self.wanted}"


class WrongServerSettings(SystemExit):
    """The servers would break the guarantees; the text names every wrong setting."""


async def read_server_settings(settings: Settings) -> list[Setting]:
    """Raises the client's own error if a server does not answer."""
    answers = await asyncio.gather(_redis_settings(settings), _postgres_settings(settings), _kafka_settings(settings))
    return [setting for answer in answers for setting in answer]


async def _redis_settings(settings: Settings) -> list[Setting]:
    client = connect_redis(settings, connections=1, timeout_s=5.0)
    try:
        replies = await client.config_get(*REDIS)
    finally:
        await client.aclose()
    values = {_text(name): _text(value) for name, value in replies.items()}
    return [Setting("redis", name, values.get(name), wanted) for name, wanted in REDIS.items()]


async def _postgres_settings(settings: Settings) -> list[Setting]:
    connection = await asyncpg.connect(settings.postgres_dsn, timeout=CONNECT_TIMEOUT_S, command_timeout=5.0)
    try:
        return [
            Setting("postgres", name, await connection.fetchval("SELECT current_setting($1)", name), wanted)
            for name, wanted in POSTGRES.items()
        ]
    finally:
        await connection.close(timeout=CONNECT_TIMEOUT_S)


async def _kafka_settings(settings: Settings) -> list[Setting]:
    """Settings of all our topics (which must exist), and of the broker that answers."""
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap_servers)
    try:
        async with asyncio.timeout(KAFKA_TIMEOUT_S):
            await admin.start()
            brokers = (await admin.describe_cluster())["brokers"]
            broker = ConfigResource(ConfigResourceType.BROKER, str(brokers[0]["node_id"]))
            of_topics = [ConfigResource(ConfigResourceType.TOPIC, topic.name) for topic in topics.ALL]
            values = _by_resource(await admin.describe_configs(of_topics) + await admin.describe_configs([broker]))
    finally:
        await admin.close()
    wanted = TOPIC | {"min.insync.replicas": "2" if settings.replication_factor > 2 else "1"}
    found = [
        Setting(f"topic {topic.name}", name, values[topic.name].get(name), value)
        for topic in topics.ALL
        for name, value in wanted.items()
    ]
    return found + [Setting("kafka", name, values[broker.name].get(name), value) for name, value in BROKER.items()]


def _by_resource(replies: Sequence[Any]) -> Mapping[str, dict[str, str]]:
    """The settings of each resource by name. In every protocol version an entry starts with name and value."""
    return {
        name: {entry[0]: entry[1] for entry in entries}
        for reply in replies
        for _, _, _, name, entries in reply.resources
    }


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


async def require_server_settings(settings: Settings) -> list[Setting]:
    """The wrong settings, for a warning in the development profile. Raises WrongServerSettings in any other profile."""
    wrong = [setting for setting in await read_server_settings(settings) if not setting.ok]
    if wrong and not settings.development:
        faults = "\n".join(f"  {setting}" for setting in wrong)
        raise WrongServerSettings(f"these servers would break the guarantees:\n{faults}")
    return wrong
