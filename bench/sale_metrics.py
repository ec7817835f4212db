"""Events of a load test's users in, the reference's metrics out, as rows of locust's own statistics.

A row of type SALE has a count and times like any request's, so the page, the CSV and the report show it and several load
generators' rows add up; but it is no request and does not count in locust's total.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from locust.env import Environment
from locust.stats import StatsEntry

from .sale_result import SaleResult, Spread

SALE = "SALE"
FLUSH_LINES = 200  # of the client log; a write is whole lines, so that several processes may append


class SaleMetrics:
    """Of one load-generator process."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def note(self, metric: str, ms: float = 0.0) -> None:
        self._environment.stats.get(metric, SALE).log(round(ms), 0)

    def count(self, metric: str) -> int:
        return int(self._environment.stats.get(metric, SALE).num_requests)

    def seconds_since(self, metric: str) -> float | None:
        """Since it was last noted; None if never."""
        entry = self._environment.stats.get(metric, SALE)
        return None if entry.last_request_timestamp is None else time.time() - entry.last_request_timestamp

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
    at = entry.get_response_time_percentile
    return Spread(
        entry.num_requests,
        round(entry.avg_response_time, 1),
        at(0.5),
        at(0.95),
        at(0.99),
        float(entry.max_response_time),
    )


class Attendance:
    """How many users the shape wanted and how many ran, second by second."""

    def __init__(self) -> None:
        self._started_s = self._seen_s = time.monotonic()
        self._planned_s = self._running_s = 0.0  # user-seconds
        self._planned = self._running = self.peak = 0

    def see(self, planned: int, running: int) -> None:
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


class Answered(msgspec.Struct, frozen=True):
    """A line of the client log, as `thrones audit --client-log` reads it: A = 202, U = unknown, R = refused for certain."""

    at_ms: int
    user: int
    product: int
    key: str
    order: str | None
    outcome: str
    status: int
    code: str
    latency_ms: float


class ClientLog:
    """What the users were answered, appended to a file as JSON lines; nowhere if there is no path."""

    def __init__(self, path: str) -> None:
        self._path = Path(path) if path else None
        self._lines: list[bytes] = []

    def add(self, line: Answered) -> None:
        if self._path is None:
            return
        self._lines.append(msgspec.json.encode(line) + b"\n")
        if len(self._lines) >= FLUSH_LINES:
            self.flush()

    def flush(self) -> None:
        lines, self._lines = self._lines, []
        if self._path is None or not lines:
            return
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            _write_whole(fd, b"".join(lines))
        finally:
            os.close(fd)


def _write_whole(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def show_progress(metrics: SaleMetrics, attendance: Attendance, wanted: int, running: int) -> str:
    """One line for people, while the test runs."""
    ended = sum(metrics.count(name) for name in ENDS.values())
    accepted, sold_out = metrics.count("successful_purchases"), metrics.count("out_of_stock_409")
    return (
        f"{attendance.seconds:6.0f} s  users {running}/{wanted}  accepted {accepted:,} ended {ended:,}"
        f"  sold out {sold_out:,}  server errors {metrics.count('server_errors'):,}"
    )


# What became of an accepted order -> the metric that counts it. Confirmed has the reference's name.
ENDS = {
    "confirmed": "fully_confirmed_orders",
    "payment_failed": "declined_orders",
    "failed": "failed_orders",
    "unseen": "orders_without_an_end",
}


def lines(result: SaleResult) -> Sequence[str]:
    """The reference's metrics for people."""
    rate = result.order_success_rate
    counted = ("successful_purchases", *ENDS.values(), "out_of_stock_409", *REFUSALS, "unknown_outcomes")
    timed = ("successful_purchases", "out_of_stock_409", "payment_processing_time", "total_order_time")
    named = {"successful_purchases": "answered 202 after", "out_of_stock_409": "answered 409 after"}
    return [
        *(f"  {metric:26}{result.count(metric):>9,}" for metric in counted if result.count(metric) or metric in KEY),
        f"  {'server_errors':26}{result.count('server_errors'):>9,}",
        f"  {'order_success_rate':26}{'-' if rate is None else f'{rate:.1%}':>9}",
        *(_times(named.get(metric, metric), result.of(metric)) for metric in timed if result.count(metric)),
    ]


KEY = {"successful_purchases", "fully_confirmed_orders", "out_of_stock_409"}
REFUSALS = ("slow_down_429", "busy_503", "other_refusals")


def _times(what: str, spread: Spread) -> str:
    return (
        f"  {what:26}p50 {spread.p50_ms:>7,.0f}   p95 {spread.p95_ms:>7,.0f}   p99 {spread.p99_ms:>7,.0f}"
        f"   max {spread.max_ms:>7,.0f} ms"
    )
