"""One-time tickets for streams, because a plain EventSource cannot send a header: valid for 30 s and one use."""

import secrets
from hashlib import sha256

from aiohttp import web

from gateway.accounts.identity import Identity
from gateway.buying.admission import RateLimit
from gateway.http.bodies import answer
from gateway.http.problems import Problem
from infra.redis.client import Redis, RedisError
from schemas.ids import UserId

LIFETIME_S = 30
PER_SECOND = 20  # per user and worker; each ticket uses memory in Redis while it lives
TICKET_MAX_CHARACTERS = 64


class Tickets:
    """Redis has only the hash of a ticket, so that a reader of Redis cannot use it."""

    def __init__(self, identity: Identity, redis: Redis) -> None:
        self._identity = identity
        self._redis = redis
        self._rates = RateLimit(PER_SECOND)

    async def issue(self, request: web.Request) -> web.Response:
        user = self._identity.user_of(request)
        if not self._rates.take(user.id):
            raise Problem("rate_limited")
        ticket = secrets.token_urlsafe(24)
        try:
            await self._redis.set(_key(ticket), int(user.id), ex=LIFETIME_S)
        except (RedisError, OSError):
            raise Problem("unavailable") from None
        return answer({"ticket": ticket, "expiresIn": LIFETIME_S})

    async def user_of(self, request: web.Request) -> UserId:
        """The user of the bearer header, else of `?ticket=`, which is used up. Raises Problem 401 or 503."""
        ticket = request.query.get("ticket")
        if ticket is None or "Authorization" in request.headers:
            return self._identity.user_of(request).id
        if not 1 <= len(ticket) <= TICKET_MAX_CHARACTERS or not ticket.isascii():
            raise Problem("unauthorized")
        try:
            user = await self._redis.getdel(_key(ticket))
        except (RedisError, OSError):
            raise Problem("unavailable") from None
        if user is None:
            raise Problem("unauthorized")
        return UserId(int(user))


def _key(ticket: str) -> str:
    return f"ticket:{sha256(ticket.encode()).hexdigest()}"
