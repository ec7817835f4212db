"""Virtual time in, a deterministic asyncio loop out: timers fire in order at once, and nobody waits for a real second."""

import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import Any
from unittest.mock import patch

EPOCH_S = 1_800_000_000.0  # the wall clocks when a simulation starts
OURS, SERVERS = "ours", ("redis", "postgres", "kafka")
HOUR_S = 3_600.0
STEPS_S = (-HOUR_S, -40.0, -1.0, 1.0, 40.0, HOUR_S)
STEP_INTERVAL_S = 15.0


class WallClocks:
    """One for all processes of ours, and one a server; each is set now and then, in some histories. Nobody's `monotonic` moves.

    Drawn apart from everything else, so that histories without it stay what they are.
    """

    def __init__(self, seed: int, loop: "SimulatedLoop") -> None:
        self._loop = loop
        self._random = random.Random(f"clocks of {seed}")
        names = (OURS, *SERVERS)
        self._set = self._random.choice(((), (), (OURS,), names))  # those that are set
        self.ahead_s = dict.fromkeys(names, 0.0)
        self._next_s = self._pause_s()

    def now_s(self, name: str) -> float:
        return EPOCH_S + self._loop.now_s + self.ahead_s[name]

    def set_one(self, passed_s: float) -> str | None:
        """What is set when `passed_s` seconds of the sale have passed, in words; None: not yet, or nothing here."""
        if not self._set or passed_s < self._next_s:
            return None
        self._next_s = passed_s + self._pause_s()
        name, step_s = self._random.choice(self._set), self._random.choice(STEPS_S)
        self.ahead_s[name] += step_s
        return f"the clock of {name} is set by {step_s:+.0f} s"

    def _pause_s(self) -> float:
        return self._random.uniform(0.0, STEP_INTERVAL_S)


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
def virtual_time(loop: SimulatedLoop, clocks: WallClocks) -> Iterator[None]:
    """`time` tells the loop's time, its wall clock that of our processes' machine."""

    def wall_s() -> float:
        return clocks.now_s(OURS)

    stand_ins: dict[str, Any] = {
        "time": wall_s,
        "time_ns": lambda: int(wall_s() * 1e9),
        "monotonic": loop.time,
        "perf_counter": loop.time,
        "clock_gettime": lambda _: loop.time(),
        "clock_gettime_ns": lambda _: int(loop.time() * 1e9),
    }
    with ExitStack() as stack:
        for name, stand_in in stand_ins.items():
            stack.enter_context(patch.object(time, name, stand_in))
        yield


def as_datetime(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
