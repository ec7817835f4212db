"""Virtual time in, a deterministic asyncio loop out: timers fire in order at once, and nobody waits for a real second."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, tzinfo
from typing import Any, Self

EPOCH_S = 1_800_000_000.0  # the wall clock when a simulation starts


class _Leap:
    """In the place of a selector: instead of waiting for the next timer, be there."""

    def __init__(self, loop: "SimulatedLoop") -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("everybody waits for somebody else, and no timer is set")
        self._loop.now_s += timeout
        return []


class SimulatedLoop(asyncio.BaseEventLoop):
    """An event loop without I/O. Callbacks run in the order asyncio promises; what is random is how long ports take."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1_000.0
        self._selector = _Leap(self)

    def time(self) -> float:
        return self.now_s

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass


@contextmanager
def virtual_time(loop: SimulatedLoop) -> Iterator[type[datetime]]:
    """`time` tells the loop's time; yields a datetime whose `now` does, for the modules that imported the class."""

    def wall_s() -> float:
        return EPOCH_S + loop.now_s

    class VirtualDatetime(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return cls.fromtimestamp(wall_s(), tz)

    real = {name: getattr(time, name) for name in ("time", "time_ns", "monotonic", "perf_counter")}
    time.time, time.time_ns = wall_s, lambda: int(wall_s() * 1e9)
    time.monotonic = time.perf_counter = loop.time
    try:
        yield VirtualDatetime
    finally:
        for name, function in real.items():
            setattr(time, name, function)


def as_datetime(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
