"""Bodies that did not come with their headers: waited for under bounds of time and of number, a user, an address and in all.

Nothing that another may need is held meanwhile. Past a bound whoever has waited longest gives way, so that nobody keeps
others out by sending nothing.
"""

import asyncio
from contextlib import nullcontext
from typing import Any

from aiohttp import web

from gateway.http.addresses import Addresses
from gateway.http.problems import Problem
from gateway.http.shares import Shares, SharesFull
from schemas.ids import UserId

BODY_MAX_BYTES = 16 * 1024
BODY_TIMEOUT_S = 8.0  # and 2 s of lingering: cut within 10 s
WAITING = 1_000  # a worker
WAITING_A_USER = 20


class SlowBodies:
    """One instance a worker."""

    def __init__(self, addresses: Addresses) -> None:
        self._addresses = addresses
        self._by_address = Shares(WAITING, each=WAITING)
        self._by_user = Shares(WAITING, each=WAITING_A_USER)

    async def read(self, request: web.Request, user: UserId | None) -> bytes:
        """Raises TimeoutError, or Problem 413, 429 where another has the place now, 503 without one."""
        gave_way = False

        def give_way() -> None:
            nonlocal gave_way
            gave_way = True
            if not deadline.expired():
                deadline.reschedule(0)

        try:
            async with asyncio.timeout(BODY_TIMEOUT_S) as deadline:
                with (
                    self._by_address.one(self._addresses.of(request), give_way),
                    nullcontext() if user is None else self._by_user.one(user, give_way),
                ):
                    return await _rest(request.content)
        except SharesFull:
            raise Problem("busy", close=True) from None
        except TimeoutError:
            if gave_way:
                raise Problem("rate_limited", "Too many requests are waiting for their bodies.", close=True) from None
            raise


async def _rest(content: Any) -> bytes:
    parts: list[bytes] = []
    size = 0
    while part := await content.readany():
        parts.append(part)
        size += len(part)
        if size > BODY_MAX_BYTES:
            raise Problem("too_large", close=True)
    return b"".join(parts)
