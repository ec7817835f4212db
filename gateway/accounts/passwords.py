"""Hashes and checks passwords with bcrypt in a few low-priority threads, so that many logins do not slow down buying.

Logins and registrations have separate threads and queues: a flood of registrations does not block logins.
"""

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import bcrypt

from gateway.http.problems import Problem
from gateway.http.shares import Shares, SharesFull

LOGIN_THREADS, REGISTRATION_THREADS = 2, 1
WAITING_MAX = 12  # per queue
DEADLINE_S = 4.5  # every answer comes within 5 s, even if buying leaves these threads little CPU
NICENESS = 5  # on top of that of the event loop

T = TypeVar("T")


class Passwords:
    """One instance per worker. A full queue is shared fairly between addresses; without a place: Problem 503."""

    def __init__(self, cost: int) -> None:
        self._cost = cost
        self._logins = ThreadQueue(LOGIN_THREADS)
        self._registrations = ThreadQueue(REGISTRATION_THREADS)
        self._nobody = bcrypt.hashpw(os.urandom(16).hex().encode(), bcrypt.gensalt(cost))

    async def hash(self, secret: bytes, address: str) -> str:
        hashed: bytes = await self._registrations.run(
            lambda: bcrypt.hashpw(secret, bcrypt.gensalt(self._cost)), address
        )
        return hashed.decode()

    async def matches(self, spellings: tuple[bytes, ...], hashed: str | None, address: str) -> bool:
        """Whether one of the spellings matches; all are tried. Without a user, or with an unusable hash, it does the same
        work and returns False."""
        usable = hashed is not None and hashed.startswith("$2")
        against = hashed.encode() if usable and hashed is not None else self._nobody
        same = await self._logins.run(lambda: [bcrypt.checkpw(secret, against) for secret in spellings], address)
        return any(same) and usable

    def close(self) -> None:
        self._logins.close()
        self._registrations.close()


class ThreadQueue:
    """A few threads behind a bounded queue that serves the addresses in turn. In a full queue, the oldest call of the
    address with the most calls makes room for an address with fewer."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, "bcrypt", initializer=_lower_thread_priority)
        self._free = threads
        self._waiting = Shares(WAITING_MAX)
        self._turns: dict[str, deque[asyncio.Future[None]]] = {}  # by address, in the order of their turns

    async def run(self, work: Callable[[], T], address: str) -> T:
        """Raises Problem 503 if the queue has no place, or the time is over."""
        try:
            async with asyncio.timeout(DEADLINE_S) as deadline:
                await self._thread(address, deadline)
                job = asyncio.get_running_loop().run_in_executor(self._pool, work)
                job.add_done_callback(lambda _: self._next_turn())  # when the work ends, even if its caller has gone
                return await asyncio.shield(job)
        except (SharesFull, TimeoutError):
            raise Problem("busy") from None

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _thread(self, address: str, deadline: asyncio.Timeout) -> None:
        """Wait for a free thread and take it."""
        if self._free:
            self._free -= 1
            return
        with self._waiting.hold(address, lambda: _expire(deadline)):
            turn = asyncio.get_running_loop().create_future()
            self._turns.setdefault(address, deque()).append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():  # its turn came just as its time was over
                    self._next_turn()
                raise

    def _next_turn(self) -> None:
        while self._turns:
            address, turns = next(iter(self._turns.items()))
            turn = turns.popleft()
            del self._turns[address]
            if turns:
                self._turns[address] = turns  # behind all others
            if not turn.done():  # done: its caller has given up
                turn.set_result(None)
                return
        self._free += 1


def _expire(deadline: asyncio.Timeout) -> None:
    if not deadline.expired():
        deadline.reschedule(0)


def _lower_thread_priority() -> None:
    # On Linux each thread has its own niceness, so that of the event loop stays. Only root may lower it, so add to it.
    thread = threading.get_native_id()
    os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + NICENESS))
