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
    """Milliseconds since this machine booted, including sleep. Setting the clock does not change it."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment in the life of this process, whose age can be asked later."""

    wall_s: float = field(default_factory=lambda: time.time())
    since_boot_s: float = field(default_factory=lambda: time.clock_gettime(time.CLOCK_BOOTTIME))

    def ago_s(self) -> float:
        """The age by the clock that says more: too long is safer than too short.

        Setting the wall clock back does not change the time since boot. After a pause of a virtual machine only the wall
        clock has moved on.
        """
        return max(time.time() - self.wall_s, time.clock_gettime(time.CLOCK_BOOTTIME) - self.since_boot_s)
