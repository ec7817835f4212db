"""How fast something comes: counts in, out whether waiting for more of it pays.

A batch costs as much as some twenty of its records, so where much comes it is worth gathering, and where little comes
nobody should wait for company that will not appear.
"""

import math

WINDOW_S = 0.1  # long enough to count in, short enough that a burst's first tenth of a second is all it costs


class Pace:
    """Busy when at least `busy_per_s` came in the last window that has ended; then it pays to wait `gather_s` for company.

    Never busy unless told when. Times are an event loop's, in seconds.
    """

    def __init__(self, busy_per_s: float = math.inf, gather_s: float = 0.0) -> None:
        self._busy_per_s = busy_per_s
        self._gather_s = gather_s
        self._since_s = 0.0
        self._count = 0
        self.busy = False

    @property
    def wait_s(self) -> float:
        """How long to wait for company now."""
        return self._gather_s if self.busy else 0.0

    def note(self, count: int, now_s: float) -> None:
        """So many have come since the last note."""
        self._count += count
        took_s = now_s - self._since_s
        if took_s >= WINDOW_S:
            self.busy = self._count >= took_s * self._busy_per_s
            self._since_s, self._count = now_s, 0
