"""Starting and stopping a process: SIGTERM and SIGINT set one stop event, and everything the process runs ends by it."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

DRAIN_DEADLINE_S = 20.0  # the supervisor kills after 25 s: five remain to close the pools


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
        """Sleep, or wake early when `stop` is set. Returns True when stopping."""
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
    loop.add_signal_handler(signal.SIGUSR2, dump_tasks)
    return stop


def dump_tasks() -> None:
    """Print what every task of this process waits for to standard error: `kill -USR2 PID` when one seems to hang."""
    for task in asyncio.all_tasks():
        print(task.get_name(), *_waits(task.get_coro()), sep="\n  ", file=sys.stderr, flush=True)


def _waits(awaited: Any) -> Iterator[str]:
    """The stack of a suspended coroutine, outermost frame first."""
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        yield f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_qualname}" if frame else repr(awaited)
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)


async def close_within(closing: Coroutine[Any, Any, object], seconds: float) -> None:
    """Wait at most `seconds` for `closing`, then cancel it and go on. Its errors are dropped.

    `wait_for` would not do: before Python 3.12 it waits for ever for a task that ignores its cancellation, as aiokafka's
    `stop()` may while the broker is away. This function itself can be cancelled at once.
    """
    task = asyncio.create_task(closing)
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        task.cancel()
        task.add_done_callback(_retrieve_exception)


def _retrieve_exception(task: "asyncio.Task[object]") -> None:
    if not task.cancelled():
        task.exception()  # else asyncio reports that it was never retrieved


def cancelled() -> bool:
    """Whether this task was asked to end. Every loop that runs until it is cancelled checks this.

    A library below the loop can swallow a cancellation: Python 3.11's `wait_for` drops one that comes in the same loop
    iteration as its result, aiokafka's `stop` one that comes while it waits for its own tasks.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


@asynccontextmanager
async def background(*coroutines: Coroutine[Any, Any, None]) -> AsyncIterator[asyncio.TaskGroup]:
    """Run coroutines beside the body. They are cancelled when the body ends; an error in one of them ends the body."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(coroutine) for coroutine in coroutines]
        try:
            yield group
        finally:
            for task in tasks:
                task.cancel()
