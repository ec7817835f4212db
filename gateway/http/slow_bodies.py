"""Waits for bodies that did not arrive with their headers, under limits of time and number: per user, per address, in all.

A waiting request holds nothing else that others need. Above a limit the longest wait is ended, so that a client that sends
nothing cannot keep others out.
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
BODY_TIMEOUT_S = 8.0  # with 2 s of lingering it closes within 10 s
WAITING = 1_000  # per worker
WAITING_A_USER = 20


class SlowBodies:
    """One instance a worker."""

    def __init__(self, addresses: Addresses) -> None:
        self._addresses = addresses
        self._by_address = Shares(WAITING, each=WAITING)
        self._by_user = Shares(WAITING, each=WAITING_A_USER)

    async def read(self, request: web.Request, user: UserId | None) -> bytes:
        """Raises TimeoutError, or Problem: 413, 429 if another request took its place, 503 if there was no place."""
        displaced = False

        def on_displaced() -> None:
            nonlocal displaced
            displaced = True
            if not deadline.expired():
                deadline.reschedule(0)

        try:
            async with asyncio.timeout(BODY_TIMEOUT_S) as deadline:
                with (
                    self._by_address.hold(self._addresses.of(request), on_displaced),
                    nullcontext() if user is None else self._by_user.hold(user, on_displaced),
                ):
                    return await _rest(request.content)
        except SharesFull:
            raise Problem("busy", close=True) from None
        except TimeoutError:
            if displaced:
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
