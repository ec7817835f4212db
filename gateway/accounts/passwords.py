"""Passwords in, bcrypt's slow work done in a few niced threads out, so that a storm of logins does not slow buying.

Logins and registrations have threads and queues of their own: whoever registers by the hundred keeps nobody from logging in.
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
WAITING_MAX = 12  # in each of the queues
DEADLINE_S = 4.5  # any answer is given within 5 s, also when buying leaves these threads little
NICENESS = 5  # more than the event loop has

T = TypeVar("T")


class Passwords:
    """One instance a worker. `address` is who asks: a full queue is shared out by it. Full means Problem 503."""

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
        """One of the spellings; all are tried. False for no user and for an unusable hash too, after the same work."""
        usable = hashed is not None and hashed.startswith("$2")
        against = hashed.encode() if usable and hashed is not None else self._nobody
        same = await self._logins.run(lambda: [bcrypt.checkpw(secret, against) for secret in spellings], address)
        return any(same) and usable

    def close(self) -> None:
        self._logins.close()
        self._registrations.close()


class ThreadQueue:
    """A few threads, and a bounded queue before them that is shared out by address: each has its turn, and of a full queue
    the oldest of who has most gives way to who has fewer."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, "bcrypt", initializer=_lower_thread_priority)
        self._free = threads
        self._waiting = Shares(WAITING_MAX)
        self._turns: dict[str, deque[asyncio.Future[None]]] = {}  # by address, whose turn is next first

    async def run(self, work: Callable[[], T], address: str) -> T:
        """Raises Problem 503 where there is no place, or no time."""
        try:
            async with asyncio.timeout(DEADLINE_S) as deadline:
                await self._thread(address, deadline)
                job = asyncio.get_running_loop().run_in_executor(self._pool, work)
                job.add_done_callback(lambda _: self._next_turn())  # when the work ends, however long its caller waited
                return await asyncio.shield(job)
        except (SharesFull, TimeoutError):
            raise Problem("busy") from None

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _thread(self, address: str, deadline: asyncio.Timeout) -> None:
        """Returns when one is free, and taken."""
        if self._free:
            self._free -= 1
            return
        with self._waiting.hold(address, lambda: _expire(deadline)):
            turn = asyncio.get_running_loop().create_future()
            self._turns.setdefault(address, deque()).append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():  # its turn came as its time was over
                    self._next_turn()
                raise

    def _next_turn(self) -> None:
        while self._turns:
            address, turns = next(iter(self._turns.items()))
            turn = turns.popleft()
            del self._turns[address]
            if turns:
                self._turns[address] = turns  # behind all others
            if not turn.done():  # done: it has given up
                turn.set_result(None)
                return
        self._free += 1


def _expire(deadline: asyncio.Timeout) -> None:
    if not deadline.expired():
        deadline.reschedule(0)


def _lower_thread_priority() -> None:
    # On Linux niceness belongs to a thread: the event loop's is untouched. Only root may take some back, so it is added.
    thread = threading.get_native_id()
    os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + NICENESS))
