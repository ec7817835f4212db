"""Failed logins counted in Redis over a moving minute: the 6th of an account and the 21st from an address are refused."""

import uuid
from hashlib import sha256

from infra.redis_client import Redis, RedisError

from .problems import Problem

PER_ACCOUNT = 5
PER_ADDRESS = 20
WINDOW_MS = 60_000

# KEYS[1] sorted set of attempts by time (ms)   ARGV[1] limit   ARGV[2] window (ms)   ARGV[3] attempt to add, '' to look only
# Returns 0, or the milliseconds until the next attempt is allowed.
TAKE = """
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[1]) then
  return math.max(1, tonumber(redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2]) + ARGV[2] - now)
end
if ARGV[3] ~= '' then
  redis.call('ZADD', KEYS[1], now, ARGV[3])
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 0
"""


class LoginAttempts:
    """An account's place is taken before the password is looked at, so a parallel flood cannot slip past the count, and
    given back when it was right. Redis away means nobody logs in: Problem 503."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._take = redis.register_script(TAKE)

    async def begin(self, email: str, address: str) -> str:
        """The attempt's name, for `succeeded` or `failed`. Raises Problem 429."""
        attempt = uuid.uuid4().hex
        try:
            wait_ms = await self._take(keys=[_address(address)], args=[PER_ADDRESS, WINDOW_MS, ""])
            wait_ms = wait_ms or await self._take(keys=[_account(email)], args=[PER_ACCOUNT, WINDOW_MS, attempt])
        except (RedisError, OSError):
            raise Problem("unavailable") from None
        if wait_ms:
            raise Problem("rate_limited", retry_after_s=-(-int(wait_ms) // 1000))
        return attempt

    async def given_back(self, email: str, attempt: str) -> None:
        """It was right, or never looked at."""
        try:
            await self._redis.zrem(_account(email), attempt)
        except (RedisError, OSError):
            return  # the place frees itself within a minute

    async def failed(self, address: str, attempt: str) -> None:
        try:
            await self._take(keys=[_address(address)], args=[2**31, WINDOW_MS, attempt])
        except (RedisError, OSError):
            raise Problem("unavailable") from None


def _account(email: str) -> str:
    return f"login:account:{sha256(email.encode(errors='replace')).hexdigest()}"


def _address(address: str) -> str:
    return f"login:address:{address}"
