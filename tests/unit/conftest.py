"""Fixtures of the unit tests: no sockets, no disks, and time that passes only when everybody waits."""

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest


class _NobodyIsWaitedFor(selectors.SelectSelector):
    """Where the loop would sleep, its clock jumps instead; where it would sleep for ever, the test has a deadlock."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everything waits and no timer is running"
        self.now_s += max(timeout, 0)
        return super().select(0)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Sleeps, timers and timeouts take no real time; loop.time() starts at 0."""

    def __init__(self) -> None:
        self._virtual = _NobodyIsWaitedFor()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now_s


@pytest.fixture
def in_virtual_time() -> Callable[[Coroutine[Any, Any, None]], None]:
    """Run a test's coroutine on a loop of virtual time."""

    def run(test: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            runner.run(test)

    return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves `time.monotonic` by seconds."""
    now = [1_000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def move(seconds: float) -> None:
        now[0] += seconds

    return move
