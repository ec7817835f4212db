"""The figures with a goal, and whether each goal is met, missed, or not measured. Pure."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec


@dataclass(frozen=True, slots=True)
class Goal:
    """`at_least`: more is better; otherwise `bound` is the maximum."""

    what: str
    unit: str
    bound: float
    at_least: bool = False

    def met_by(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


GOALS: dict[str, Goal] = {
    "cold_rush_ack_p50": Goal("cold, 3,000 buyers in 3 s for 1,000 units: click to 202, p50", "ms", 50),
    "cold_rush_ack_p99": Goal("cold, 3,000 buyers: click to 202, p99", "ms", 200),
    "cold_rush_own_p50": Goal("cold, 3,000 buyers: own delay, p50", "ms", 200),
    "cold_rush_own_p95": Goal("cold, 3,000 buyers: own delay, p95", "ms", 600),
    "cold_rush_last": Goal("cold, 3,000 buyers: last end after the last charge's answer", "ms", 1_000),
    "cold_500_ack_p95": Goal("cold, 500/s from the first request on, 10 s: acknowledgement, p95", "ms", 25),
    "cold_500_ack_p99": Goal("cold, 500/s: acknowledgement, p99", "ms", 60),
    "cold_500_own_p95": Goal("cold, 500/s: own delay, p95", "ms", 250),
    "cold_1000_ended": Goal("cold, 1,000/s for 30 s: ended meanwhile", "/s", 900, at_least=True),
    "cold_1000_own_p95": Goal("cold, 1,000/s: own delay, p95", "ms", 1_000),
    "cold_busy_late": Goal("the same beside two busy loops: latest end after its charge's answer", "ms", 5_000),
    "burst_accepted": Goal("accepted in a burst of 64 connections, 15 s, all running", "/s", 5_000, at_least=True),
    "burst_ended": Goal("ended meanwhile, of those accepted in the burst", "%", 50, at_least=True),
    "sustained": Goal("ended, sustained, payment included", "/s", 2_000, at_least=True),
    "own_p50": Goal("own delay at 200/s, p50", "ms", 30),
    "own_p95": Goal("own delay at 200/s, p95", "ms", 100),
    "own_p99": Goal("own delay at 200/s, p99", "ms", 250),
    "ack_500_achieved": Goal("answered of offered, 500/s", "%", 99, at_least=True),
    "ack_500_p95": Goal("acknowledgement at 500/s, p95", "ms", 11),
    "ack_500_p99": Goal("acknowledgement at 500/s, p99", "ms", 25),
    "ack_1700_achieved": Goal("answered of offered, 1,700/s", "%", 99, at_least=True),
    "ack_1700_p95": Goal("acknowledgement at 1,700/s, p95", "ms", 50),
    "ack_1700_p99": Goal("acknowledgement at 1,700/s, p99", "ms", 150),
    "over_3500_bad": Goal("3,500/s: resets, timeouts and 5xx other than 503", "", 0),
    "over_3500_refused_p99": Goal("3,500/s: refusals, p99", "ms", 50),
    "over_3500_recovery": Goal("3,500/s: until acknowledgements are normal", "s", 5),
    "over_6000_bad": Goal("6,000/s: resets, timeouts and 5xx other than 503", "", 0),
    "over_6000_refused_p99": Goal("6,000/s: refusals, p99", "ms", 50),
    "over_6000_recovery": Goal("6,000/s: until acknowledgements are normal", "s", 5),
    "stream_p99": Goal("stock stream, 10,000 clients, 1,000 changes/s: change to client, p99", "ms", 100),
    "stream_kb": Goal("stock stream: memory a client", "KB", 20),
    "requests_per_order": Goal("requests per order with pushed status", "", 2),
    "cpu_500": Goal("CPU per order at 500/s, our processes and servers", "ms", 1.0),
    "cpu_full": Goal("CPU per order at full load, our processes and servers", "ms", 0.5),
    "growth_4": Goal("orders/s of 4 members against 4 times one's, the least of all stages", "%", 80, at_least=True),
    "backlog_flat": Goal("CPU per order in the largest backlog against the smallest", "x", 1.2),
}


class Figure(msgspec.Struct, frozen=True):
    """The values of all repetitions, in order."""

    values: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)


def verdict(key: str, figures: Mapping[str, Figure]) -> str:
    if key not in figures:
        return "not measured"
    return "met" if GOALS[key].met_by(figures[key].median) else "missed"


def shown(value: float) -> str:
    """The value with two or three significant digits."""
    if value and abs(value) < 10:
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return f"{value:,.0f}"
