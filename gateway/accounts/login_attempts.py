"""Limits failed logins, counted in Redis over a sliding minute: 5 per account and 20 per address.

An address from which the account has logged in before has a separate count. So an attacker elsewhere who keeps guessing
cannot lock the owner out.
"""

import uuid
from dataclasses import dataclass
from hashlib import sha256

from gateway.http.problems import Problem
from infra.redis.client import Redis, RedisError

PER_ACCOUNT = 5
PER_ADDRESS = 20
WINDOW_MS = 60_000
KNOWN_FOR_S = 30 * 86_400  # how long an address stays known after a login from it

# KEYS[1] sorted set of attempts by time (ms)   ARGV[1] limit   ARGV[2] window (ms)   ARGV[3] attempt to add, '' to look only
# Returns 0, or the milliseconds until the next attempt is allowed.
TAKE = """
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], string.format('(%.0f', now), '+inf')  -- attempts with future times: the clock was set back
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[1]) then
  return math.max(1, tonumber(redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2]) + ARGV[2] - now)
end
if ARGV[3] ~= '' then
  redis.call('ZADD', KEYS[1], now, ARGV[3])
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 0
"""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One login in progress; its place is in the set `account`."""

    name: str
    account: str
    address: str
    known: str


class LoginAttempts:
    """Takes a place before the password is checked, so that parallel attempts cannot pass the limit, and gives it back if
    the password was right. Without Redis no login is possible: Problem 503."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._take = redis.register_script(TAKE)

    async def begin(self, email: str, address: str) -> Attempt:
        """End it with `succeeded`, `failed` or `given_back`. Raises Problem 429."""
        try:
            attempt = await self._attempt(email, address)
            wait_ms = await self._take(keys=[attempt.address], args=[PER_ADDRESS, WINDOW_MS, ""])
            wait_ms = wait_ms or await self._take(keys=[attempt.account], args=[PER_ACCOUNT, WINDOW_MS, attempt.name])
        except (RedisError, OSError):
            raise Problem("unavailable") from None
        if wait_ms:
            raise Problem("rate_limited", retry_after_s=-(-int(wait_ms) // 1000))
        return attempt

    async def _attempt(self, email: str, address: str) -> Attempt:
        account, pair = _hash(email), _hash(f"{email} {address}")
        known = f"login:known:{pair}"
        counted_as = pair if await self._redis.exists(known) else account
        return Attempt(uuid.uuid4().hex, f"login:account:{counted_as}", f"login:address:{address}", known)

    async def succeeded(self, attempt: Attempt) -> None:
        await self.given_back(attempt)
        try:
            await self._redis.set(attempt.known, "", ex=KNOWN_FOR_S)
        except (RedisError, OSError):
            return  # the next login from this address makes it known

    async def given_back(self, attempt: Attempt) -> None:
        """The password was right, or was never checked."""
        try:
            await self._redis.zrem(attempt.account, attempt.name)
        except (RedisError, OSError):
            return  # the place expires within a minute

    async def failed(self, attempt: Attempt) -> None:
        try:
            await self._take(keys=[attempt.address], args=[2**31, WINDOW_MS, attempt.name])
        except (RedisError, OSError):
            raise Problem("unavailable") from None


def _hash(text: str) -> str:
    return sha256(text.encode(errors="replace")).hexdigest()
