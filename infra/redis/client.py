"""The Redis client: a bounded pool, a timeout on every command, and no hidden retries."""

from collections.abc import Sequence
from typing import Any, cast

from redis.asyncio import BlockingConnectionPool
from redis.asyncio import Redis as RedisPy
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from infra.redis.trips import Command, Trips, raise_first_error
from infra.settings import Settings

UNREACHABLE = (RedisConnectionError, RedisTimeoutError, OSError)
__all__ = ["UNREACHABLE", "Redis", "RedisError", "clock_ms", "connect_redis"]


class Redis(RedisPy):
    """redis-py's client, with `round_trip` added for the paths where the CPU time of a command matters."""

    trips: Trips  # set by connect_redis

    async def round_trip(self, commands: Sequence[Command]) -> list[Any]:
        """Like `Trips.run`: error replies are values."""
        return await self.trips.run(commands)

    async def replies(self, commands: Sequence[Command]) -> list[Any]:
        """Like `round_trip`, but raises the first error reply."""
        answered = await self.round_trip(commands) if commands else []
        raise_first_error(answered)
        return answered

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        self.trips.close()
        await super().aclose(close_connection_pool)


async def clock_ms(redis: Redis) -> int:
    """The time by Redis' clock. Times that Redis has written are compared with this clock only."""
    [(seconds, microseconds)] = await redis.replies([("TIME",)])
    return int(seconds) * 1000 + int(microseconds) // 1000


def connect_redis(settings: Settings, *, connections: int = 8, timeout_s: float | None = None) -> Redis:
    """A client whose commands run at most once. Its pool waits for a free connection, then raises ConnectionError.

    The library's retries are off: a hidden second run of `reserve` could turn a lost acceptance into a definite refusal.
    """
    limit = settings.redis_timeout_s if timeout_s is None else timeout_s
    pool = BlockingConnectionPool.from_url(
        settings.redis_url,
        max_connections=connections,
        timeout=limit,
        socket_timeout=limit,
        socket_connect_timeout=limit,
        retry=Retry(NoBackoff(), 0),
        retry_on_error=[],
        health_check_interval=0,
        protocol=2,
    )
    client = cast(Redis, Redis.from_pool(pool))
    client.trips = Trips(settings.redis_url, limit)
    return client
