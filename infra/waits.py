"""Retries until a dependency answers, and declares the wait: a process that waits for a dependency is not stuck.

The watchdog reads the declared waits from `waiting_for()`.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from .backoff import jittered
from .lifecycle import cancelled
from .logs import get_logger
from .metrics.definitions import WAITING

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0

T = TypeVar("T")
P = ParamSpec("P")
log = get_logger()
_waits: Counter[str] = Counter()
_waiting = WAITING.make()


def waiting_for() -> list[str]:
    """The names of the dependencies for which this process waits now."""
    return sorted(name for name, count in _waits.items() if count)


@contextmanager
def declared_wait(name: str) -> Iterator[None]:
    _waits[name] += 1
    _waiting.labels(name).inc()
    try:
        yield
    finally:
        _waits[name] -= 1
        _waiting.labels(name).dec()


async def retry_until_ok(
    what: str, on: tuple[type[Exception], ...], attempt: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Repeat `attempt` while it raises one of `on`, with jittered pauses of at most 2 s. Other errors are raised.

    `attempt` must be idempotent. There is no limit of attempts: a stage that drains cancels the task.
    """
    try:
        return await attempt(*args, **kwargs)
    except on as error:
        log.warning("waiting", what=what, error=repr(error))
    pause_s = FIRST_PAUSE_S
    with declared_wait(what):
        while True:
            if cancelled():
                raise asyncio.CancelledError
            await asyncio.sleep(jittered(pause_s))
            try:
                return await attempt(*args, **kwargs)
            except on:
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
