"""Signals in, one stop event out: everything a process runs ends by it, under one deadline."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

DRAIN_DEADLINE_S = 20.0  # the supervisor kills after 25 s; five are left for closing pools


class Stop:
    """One event for the whole process. The first SIGTERM or SIGINT sets it, the second ends the process at once."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        if self._event.is_set():
            os._exit(1)
        self._event.set()

    @property
    def stopping(self) -> bool:
        return self._event.is_set()

    async def wait(self) -> None:
        await self._event.wait()

    async def sleep(self, seconds: float) -> bool:
        """Sleep, or less if asked to stop; True when stopping."""
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            return False
        return True


def stop_on_signals() -> Stop:
    """A `Stop` wired to SIGTERM and SIGINT of the running loop."""
    stop = Stop()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def cancelled() -> bool:
    """Whether this task was asked to end. Every loop that runs until it is cancelled asks this too.

    Being cancelled can go unnoticed below it: Python 3.11's `wait_for` drops a cancellation that comes in the same turn
    as its result, aiokafka's `stop` one that comes while it waits for its own tasks.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


@asynccontextmanager
async def background(*coroutines: Coroutine[Any, Any, None]) -> AsyncIterator[asyncio.TaskGroup]:
    """Run coroutines beside the body; cancelled when the body ends, and an error in one ends the body."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(coroutine) for coroutine in coroutines]
        try:
            yield group
        finally:
            for task in tasks:
                task.cancel()
