"""Checks, before a command begins, that each server it needs answers.

A server that is down refuses at once. One that hangs (stopped, swapped out, cut off) does not answer at all, and each
client library waits for it in its own way. This asks all servers at once, for a few seconds, and names the silent ones.
"""

import asyncio
from collections.abc import Collection
from urllib.parse import urlsplit

import asyncpg
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from redis.exceptions import TimeoutError as RedisTimeoutError

from infra.redis.client import RedisError, connect_redis
from infra.servers import Server

from .lifecycle import close_within
from .settings import Settings

ANSWER_S = 3.0  # with its own start-up, a command that needs a silent server takes less than 5 s
CLOSE_S = 0.2


class ServersUnreachable(Exception):
    """Some servers did not answer; the text names each of them with the reason."""


async def require_reachable(settings: Settings, servers: Collection[Server]) -> None:
    """Raises ServersUnreachable unless all of them answer."""
    reasons = await asyncio.gather(*(_reason(settings, server) for server in servers))
    if silent := [reason for reason in reasons if reason]:
        raise ServersUnreachable("; ".join(silent))


async def _reason(settings: Settings, server: Server) -> str | None:
    """Why the server does not answer; None if it does."""
    try:
        async with asyncio.timeout(ANSWER_S):
            await _ASK[server](settings)
    except (TimeoutError, RedisTimeoutError):
        return f"{server} at {_place(settings, server)} does not answer ({ANSWER_S:g} s)"
    except (KafkaError, RedisError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        return f"{server} at {_place(settings, server)}: {error or type(error).__name__}"
    return None


async def _ask_kafka(settings: Settings) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap_servers)
    try:
        await admin.start()  # reads the cluster's metadata
    finally:
        await close_within(admin.close(), CLOSE_S)


async def _ask_redis(settings: Settings) -> None:
    redis = connect_redis(settings, connections=1, timeout_s=ANSWER_S)
    try:
        await redis.ping()
    finally:
        await redis.aclose()


async def _ask_postgres(settings: Settings) -> None:
    connection = await asyncpg.connect(settings.postgres_dsn, timeout=ANSWER_S)
    await connection.close(timeout=CLOSE_S)


_ASK = {Server.KAFKA: _ask_kafka, Server.REDIS: _ask_redis, Server.POSTGRES: _ask_postgres}


def _place(settings: Settings, server: Server) -> str:
    """The server's address, without the password that a URL may hold."""
    if server is Server.KAFKA:
        return settings.kafka_bootstrap_servers
    if server is Server.POSTGRES:
        return f"{settings.db_host}:{settings.db_port}"
    return urlsplit(settings.redis_url).netloc.rpartition("@")[2]
