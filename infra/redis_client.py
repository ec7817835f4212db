"""Redis connections as we want them: bounded, timed, and never retried behind our back."""

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from .settings import Settings

UNREACHABLE = (RedisConnectionError, RedisTimeoutError, OSError)
__all__ = ["UNREACHABLE", "Redis", "RedisError", "connect_redis"]


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
    return Redis.from_pool(pool)
