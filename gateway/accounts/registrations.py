"""Limits registrations per address, counted in Redis over a sliding minute, before a registration costs any CPU."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.accounts.login_attempts import TAKE, WINDOW_MS
from gateway.http.problems import Problem
from infra.redis.client import Redis, RedisError


class Registrations:
    """Takes a place before the password is hashed, and keeps it also if the registration fails. Only one that could not be
    tried gives it back. Without Redis no registration is possible: Problem 503."""

    def __init__(self, redis: Redis, per_minute: int) -> None:
        self._redis = redis
        self._per_minute = per_minute  # 0: no limit
        self._take = redis.register_script(TAKE)

    @asynccontextmanager
    async def hold(self, address: str) -> AsyncIterator[None]:
        """Raises Problem 429."""
        if not self._per_minute:
            yield
            return
        key, name = f"register:address:{address}", uuid.uuid4().hex
        try:
            wait_ms = await self._take(keys=[key], args=[self._per_minute, WINDOW_MS, name])
        except (RedisError, OSError):
            raise Problem("unavailable") from None
        if wait_ms:
            raise Problem(
                "rate_limited", "Too many registrations from this address.", retry_after_s=-(-int(wait_ms) // 1000)
            )
        try:
            yield
        except Problem as problem:
            if problem.code in ("busy", "unavailable"):
                await self._give_back(key, name)
            raise

    async def _give_back(self, key: str, name: str) -> None:
        try:
            await self._redis.zrem(key, name)
        except (RedisError, OSError):
            return  # the place expires within a minute
