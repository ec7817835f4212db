"""Passwords in, bcrypt's slow work done in a few niced threads out, so that a login storm does not slow buying."""

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import bcrypt

from .problems import Problem

PASSWORD_MIN_BYTES, PASSWORD_MAX_BYTES = 8, 72  # bcrypt reads no further than 72
THREADS = 2
WAITING_MAX = 12
DEADLINE_S = 4.5  # any answer is given within 5 s, also when buying leaves these threads little
NICENESS = 5  # more than the event loop has

T = TypeVar("T")


def check_password(password: str, *, minimum: int = PASSWORD_MIN_BYTES) -> bytes:
    """The bytes to hash. Raises Problem 400 for what bcrypt cannot take whole."""
    try:
        secret = password.encode()
    except UnicodeEncodeError:  # a lone surrogate
        raise Problem("invalid_request", "The password is not text.") from None
    if not minimum <= len(secret) <= PASSWORD_MAX_BYTES or b"\0" in secret:
        raise Problem("invalid_request", "A password has 8 to 72 bytes and no NUL.")
    return secret


class Passwords:
    """A bounded queue before a bounded pool; full means Problem 503."""

    def __init__(self, cost: int) -> None:
        self._cost = cost
        self._pool = ThreadPoolExecutor(THREADS, "bcrypt", initializer=_step_back)
        self._places = threading.BoundedSemaphore(THREADS + WAITING_MAX)
        self._nobody = bcrypt.hashpw(os.urandom(16).hex().encode(), bcrypt.gensalt(cost))

    async def hash(self, secret: bytes) -> str:
        hashed: bytes = await self._run(lambda: bcrypt.hashpw(secret, bcrypt.gensalt(self._cost)))
        return hashed.decode()

    async def matches(self, secret: bytes, hashed: str | None) -> bool:
        """False for no user and for an unusable hash too, after the same work."""
        usable = hashed is not None and hashed.startswith("$2")
        against = hashed.encode() if usable and hashed is not None else self._nobody
        same: bool = await self._run(lambda: bcrypt.checkpw(secret, against))
        return same and usable

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[[], T]) -> T:
        if not self._places.acquire(blocking=False):
            raise Problem("busy")
        job = self._pool.submit(work)
        job.add_done_callback(lambda _: self._places.release())  # when the work ends, however long its caller waited
        try:
            return await asyncio.wait_for(asyncio.wrap_future(job), DEADLINE_S)
        except TimeoutError:
            raise Problem("busy") from None


def _step_back() -> None:
    # On Linux niceness belongs to a thread: the event loop's is untouched. Only root may take some back, so it is added.
    thread = threading.get_native_id()
    os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + NICENESS))
