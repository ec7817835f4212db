"""Redis connections as we want them: bounded, timed, and never retried behind our back."""

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
    """redis-py's client, and beside it `round_trip` for the paths where a command's CPU counts."""

    trips: Trips  # set by connect_redis

    async def round_trip(self, commands: Sequence[Command]) -> list[Any]:
        """See Trips.run: error replies are values."""
        return await self.trips.run(commands)

    async def replies(self, commands: Sequence[Command]) -> list[Any]:
        """The same, raising the first error reply."""
        answered = await self.round_trip(commands) if commands else []
        raise_first_error(answered)
        return answered

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        self.trips.close()
        await super().aclose(close_connection_pool)


async def clock_ms(redis: Redis) -> int:
    """The present by Redis' clock: what it has dated is compared with nothing else."""
    [(seconds, microseconds)] = await redis.replies([("TIME",)])
    return int(seconds) * 1000 + int(microseconds) // 1000


def connect_redis(settings: Settings, *, connections: int = 8, timeout_s: float | None = None) -> Redis:
    """A client whose pool waits for a free connection (then raises ConnectionError) and whose commands run at most once.

    Library retries are off: a hidden second run of `reserve` would turn a lost acceptance into a definite refusal.
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
