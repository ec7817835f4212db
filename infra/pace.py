"""How fast something comes: counts in, out whether waiting for more of it pays.

A batch costs as much as some twenty of its records, so where much comes it is worth gathering, and where little comes
nobody should wait for company that will not appear.
"""

WINDOW_S = 0.1  # long enough to count in, short enough that a burst's first tenth of a second is all it costs


class Pace:
    """Busy when at least `busy_per_s` came in the last window that has ended. Times are an event loop's, in seconds."""

    def __init__(self, busy_per_s: float) -> None:
        self._busy_per_s = busy_per_s
        self._since_s = 0.0
        self._count = 0
        self.busy = False

    def note(self, count: int, now_s: float) -> None:
        """So many have come since the last note."""
        self._count += count
        took_s = now_s - self._since_s
        if took_s >= WINDOW_S:
            self.busy = self._count >= took_s * self._busy_per_s
            self._since_s, self._count = now_s, 0
