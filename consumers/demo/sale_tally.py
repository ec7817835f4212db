"""What the buyers, the watchers and the log saw, counted; percentiles out."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from schemas.order_state import TERMINAL, Status


@dataclass(slots=True)
class SaleTally:
    """One sale so far. Times are seconds; delays are measured from when a buyer meant to click."""

    buyers: int = 0
    clicks: int = 0
    double_clicks: int = 0
    doubled_orders: int = 0  # double clicks that made two orders: must stay 0
    accepted: set[str] = field(default_factory=set)
    refused: Counter[str] = field(default_factory=Counter)  # by code
    sold_out_buyers: int = 0
    bad_answers: list[str] = field(default_factory=list)
    acknowledged_s: list[float] = field(default_factory=list)
    completed_s: list[float] = field(default_factory=list)  # from 202 to the buyer seeing the end
    own_delay_s: list[float] = field(
        default_factory=list
    )  # accepted to terminal on the log, less the time of the charge
    statuses: dict[str, Status] = field(default_factory=dict)  # by order id, as buyers were told
    stock: int | None = None
    stock_updates: int = 0
    watchers: int = 0

    def ended(self, status: Status) -> int:
        return sum(1 for seen in self.statuses.values() if seen is status)

    @property
    def unended(self) -> int:
        return len(self.accepted) - sum(1 for seen in self.statuses.values() if seen in TERMINAL)


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Nearest rank; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:,.0f} ms"


def spread(values: Sequence[float]) -> str:
    """'p50 3 ms   p95 8 ms   p99 11 ms'."""
    return "   ".join(f"p{percent} {milliseconds(percentile(values, percent))}" for percent in (50, 95, 99))
