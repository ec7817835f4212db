"""Failed logins counted by Redis' clock: one that is set back locks nobody out."""

from typing import Any

import pytest

from gateway.accounts.login_attempts import PER_ACCOUNT, LoginAttempts
from gateway.http.problems import Problem
from infra.redis.client import Redis, clock_ms


async def test_attempts_that_were_dated_before_redis_clock_was_set_back_do_not_count(redis: Redis) -> None:
    attempts = LoginAttempts(redis)
    for _ in range(PER_ACCOUNT):
        refused = await attempts.begin("arya@winterfell.example", "192.0.2.1")
    with pytest.raises(Problem):
        await attempts.begin("arya@winterfell.example", "192.0.2.1")
    an_hour_on = await clock_ms(redis) + 3_600_000
    dated: list[Any] = await redis.zrange(refused.account, 0, -1)
    await redis.zadd(refused.account, dict.fromkeys(dated, an_hour_on))
    await attempts.begin("arya@winterfell.example", "192.0.2.1")
