"""Clocks. A wall clock tells people when something happened; it can be set, it steps, and every machine has another.

A duration or an age is the difference of two readings of one clock: this process' monotonic clock, or one server's own.
"""

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def now_ms() -> int:
    """Milliseconds since the epoch by the wall clock: to date records and to show people, not to decide by."""
    return time.time_ns() // 1_000_000


def to_ms(at: datetime) -> int:
    """Whole milliseconds since the epoch; what is left of one is cut off."""
    return (at - EPOCH) // timedelta(milliseconds=1)


def since_boot_ms() -> int:
    """This machine's own time, also while it sleeps: no clock that is set moves it."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment in this process' life, to be asked later how long ago it was."""

    wall_s: float = field(default_factory=lambda: time.time())
    since_boot_s: float = field(default_factory=lambda: time.clock_gettime(time.CLOCK_BOOTTIME))

    def ago_s(self) -> float:
        """Rather too long than too short.

        A wall clock that was set back is no shorter since boot; a virtual machine that stood still is later by the wall.
        """
        return max(time.time() - self.wall_s, time.clock_gettime(time.CLOCK_BOOTTIME) - self.since_boot_s)
