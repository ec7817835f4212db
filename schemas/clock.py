"""What a process may say of time. A wall clock tells people when something was; it is set, it steps, and every machine has another.

How long something took or how old it is, one clock says, from both ends: this process' monotonic one, or one server's own.
"""

import time
from dataclasses import dataclass, field


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
