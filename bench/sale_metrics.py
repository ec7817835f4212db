"""The reference's metrics of a load test, kept as rows of locust's own statistics.

A row of type SALE has a count and times like a request, so the page, the CSV and the report show it, and the rows of several
load generators add up. It is not a request and does not count in locust's total.
"""

import time

from locust.env import Environment
from locust.stats import StatsEntry

from .sale_result import ENDS, SaleResult, Spread

SALE = "SALE"


class SaleMetrics:
    """The metrics of one load-generator process."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def record(self, metric: str, ms: float = 0.0) -> None:
        self._environment.stats.get(metric, SALE).log(round(ms), 0)

    def count(self, metric: str) -> int:
        entry = self._find(metric)
        return int(entry.num_requests) if entry else 0

    def seconds_since(self, metric: str) -> float | None:
        """Seconds since its last event; None if there was none."""
        entry = self._find(metric)
        return time.time() - entry.last_request_timestamp if entry and entry.last_request_timestamp else None

    def _find(self, metric: str) -> StatsEntry | None:
        """Find a row without locust's own lookup, which would create it."""
        return dict.get(self._environment.stats.entries, (metric, SALE))

    def result(self, shape: str, follow: str, think_s: float, attendance: "Attendance") -> SaleResult:
        entries = [entry for entry in self._environment.stats.entries.values() if entry.num_requests]
        errors = self._environment.stats.errors.values()
        return SaleResult(
            shape=shape,
            follow=follow,
            think_s=think_s,
            seconds=round(attendance.seconds, 1),
            users_planned=round(attendance.planned_mean, 1),
            users_running=round(attendance.running_mean, 1),
            users_peak=attendance.peak,
            sale={entry.name: _spread(entry) for entry in entries if entry.method == SALE},
            requests={f"{entry.method} {entry.name}": _spread(entry) for entry in entries if entry.method != SALE},
            failures={f"{error.method} {error.name}: {error.error}": error.occurrences for error in errors},
        )


def _spread(entry: StatsEntry) -> Spread:
    most = float(entry.max_response_time)
    p50, p95, p99 = (min(entry.get_response_time_percentile(share), most) for share in (0.5, 0.95, 0.99))
    return Spread(entry.num_requests, round(entry.avg_response_time, 1), p50, p95, p99, most)


class Attendance:
    """The planned and the running number of users, second by second."""

    def __init__(self) -> None:
        self._started_s = self._seen_s = time.monotonic()
        self._planned_s = self._running_s = 0.0  # user-seconds
        self._planned = self._running = self.peak = 0

    def record(self, planned: int, running: int) -> None:
        now_s = time.monotonic()
        self._planned_s += self._planned * (now_s - self._seen_s)
        self._running_s += (self._running + running) / 2 * (now_s - self._seen_s)
        self._seen_s, self._planned, self._running = now_s, planned, running
        self.peak = max(self.peak, running)

    @property
    def seconds(self) -> float:
        return max(0.001, self._seen_s - self._started_s)

    @property
    def planned_mean(self) -> float:
        return self._planned_s / self.seconds

    @property
    def running_mean(self) -> float:
        return self._running_s / self.seconds


def show_progress(metrics: SaleMetrics, attendance: Attendance, wanted: int, running: int) -> str:
    """One line for people, while the test runs."""
    ended = sum(metrics.count(name) for name in ENDS.values())
    accepted, sold_out = metrics.count("successful_purchases"), metrics.count("out_of_stock_409")
    return (
        f"{attendance.seconds:6.0f} s  users {running}/{wanted}  accepted {accepted:,} ended {ended:,}"
        f"  sold out {sold_out:,}  server errors {metrics.count('server_errors'):,}"
    )
