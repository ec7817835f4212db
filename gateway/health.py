"""Health of a worker: whether it lives, and whether it should get requests. Ready means that Redis answers and the worker
does not drain. Without Kafka or Postgres it is only degraded: buying continues until the limits are reached."""

import asyncio
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

import asyncpg
from aiohttp import web

from gateway.http.bodies import answer
from infra.kafka.publisher import Publisher
from infra.metrics.serving import CONTENT_TYPE, exposed
from infra.postgres.pool import UNAVAILABLE
from infra.redis.client import Redis, RedisError
from infra.settings import Settings

CHECK_TIMEOUT_S = 0.8
CHECK_INTERVAL_S = 1.0  # at most one check in this time


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """Which servers answered, and when (monotonic)."""

    redis: bool
    kafka: bool
    postgres: bool
    at: float


class Health:
    def __init__(self, settings: Settings, redis: Redis, pool: asyncpg.Pool, publisher: Publisher) -> None:
        self._brokers = settings.kafka_bootstrap_servers.split(",")
        self._redis = redis
        self._pool = pool
        self._publisher = publisher
        self._last = HealthCheck(False, False, False, float("-inf"))
        self._checking = asyncio.Lock()
        self.draining = False

    async def live(self, _request: web.Request) -> web.Response:
        return answer({"status": "ok"})

    async def ready(self, _request: web.Request) -> web.Response:
        check = await self._check()
        response = answer(self._body(check), 200 if check.redis and not self.draining else 503)
        if response.status == 503:
            response.headers["Retry-After"] = "1"
        return response

    async def overall(self, _request: web.Request) -> web.Response:
        """For people: always 200 while the worker can answer."""
        return answer(self._body(await self._check()))

    async def metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=exposed(), headers={"Content-Type": CONTENT_TYPE, "Server": "thrones"})

    def _body(self, check: HealthCheck) -> dict[str, object]:
        away = [name for name in ("kafka", "postgres") if not getattr(check, name)]
        status = "draining" if self.draining else "unavailable" if not check.redis else "degraded" if away else "ok"
        checks = {name: "ok" if getattr(check, name) else "away" for name in ("redis", "kafka", "postgres")}
        return {"status": status, "checks": checks, "degraded": away, "unpublished": self._publisher.unpublished}

    async def _check(self) -> HealthCheck:
        async with self._checking:  # concurrent requests share one check
            if time.monotonic() - self._last.at > CHECK_INTERVAL_S:
                redis, kafka, postgres = await asyncio.gather(
                    self._redis_answers(), self._kafka_answers(), self._postgres_answers()
                )
                self._last = HealthCheck(redis, kafka, postgres, time.monotonic())
            return self._last

    async def _redis_answers(self) -> bool:
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                return bool(await self._redis.ping())
        except (RedisError, OSError):
            return False

    async def _kafka_answers(self) -> bool:
        for broker in self._brokers:
            where = urlsplit(f"//{broker}")
            try:
                async with asyncio.timeout(CHECK_TIMEOUT_S / len(self._brokers)):
                    _, writer = await asyncio.open_connection(where.hostname, where.port)
            except OSError:
                continue
            writer.close()
            return True
        return False

    async def _postgres_answers(self) -> bool:
        """A read-only server, such as a standby, counts as down."""
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                return bool(await self._pool.fetchval("SELECT current_setting('transaction_read_only') = 'off'"))
        except UNAVAILABLE:
            return False
