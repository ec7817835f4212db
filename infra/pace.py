"""Measures an arrival rate, and decides whether a batch should wait briefly for more records.

A batch costs as much as some twenty of its records. At a high rate it pays to gather; at a low rate a record must not
wait for others that will not come.
"""

import math

WINDOW_S = 0.1  # long enough to count; a burst loses only its first tenth of a second


class Portion:
    """The part of a whole that a process has, from 0 to 1. Its owner changes `of_all`."""

    def __init__(self) -> None:
        self.of_all = 1.0


class Pace:
    """Busy when the last complete window had a rate of at least `busy_per_s`; then a batch waits `gather_s` for more.

    With a `part`, the rate is that of the whole: a process that has half of it is busy at half the rate. Without a threshold
    it is never busy. Times are those of an event loop, in seconds.
    """

    def __init__(self, busy_per_s: float = math.inf, gather_s: float = 0.0, part: Portion | None = None) -> None:
        self._busy_per_s = busy_per_s
        self._gather_s = gather_s
        self._part = part or Portion()
        self._since_s = 0.0
        self._count = 0
        self.busy = False

    @property
    def wait_s(self) -> float:
        """How long a batch should wait for more records now."""
        return self._gather_s if self.busy else 0.0

    def add(self, count: int, now_s: float) -> None:
        """Count the records that have arrived since the last call."""
        self._count += count
        took_s = now_s - self._since_s
        if took_s >= WINDOW_S:
            self.busy = self._count >= took_s * self._busy_per_s * self._part.of_all
            self._since_s, self._count = now_s, 0
