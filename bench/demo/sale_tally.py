"""One sale so far: what the buyers' client counts, and what watchers and the log see."""

from collections import Counter
from dataclasses import dataclass, field

from bench.tally import Tally, percentiles
from schemas.order_state import TERMINAL, Status

EXPECTED = {0, 202, 409, 429, 503, 504}  # 0: no answer


@dataclass(slots=True)
class SaleTally:
    """Times are ms; delays are measured from the intended time of a click."""

    buyers: int = 0
    clients: Tally = field(default_factory=Tally)
    own_delay_ms: list[float] = field(default_factory=list)  # accepted to ended on the log, less the time of the charge
    stock: int | None = None
    stock_updates: int = 0
    watchers: int = 0

    @property
    def accepted(self) -> int:
        return self.clients.orders

    @property
    def refused(self) -> Counter[str]:
        """By code. Answers that never came are among them."""
        found: Counter[str] = Counter()
        for answer, count in self.clients.answers.items():
            status, _, code = answer.partition(" ")
            if status != "202":
                found[code or status] += count
        return found

    def ended(self, status: Status) -> int:
        return self.clients.ends.get(status, 0)

    @property
    def unended(self) -> int:
        return self.accepted - sum(self.ended(status) for status in TERMINAL)

    @property
    def without_unit(self) -> int:
        """Buyers who went home without an order."""
        return self.clients.arrivals - self.accepted

    @property
    def unknown(self) -> int:
        """Orders whose payment is unknown, as their buyers see it."""
        return self.clients.shown.get(Status.NEEDS_RECONCILIATION, 0)

    @property
    def doubled_orders(self) -> int:
        """Double clicks that made two orders: must stay 0."""
        return len(self.clients.two_orders)

    @property
    def bad_answers(self) -> list[str]:
        """Answers that no buyer may get."""
        unexpected = [name for name in self.clients.answers if int(name.split()[0]) not in EXPECTED]
        return [*self.clients.bad_answers, *unexpected]


def milliseconds(ms: float | None) -> str:
    return "-" if ms is None else f"{ms:,.0f} ms"


def at(values: list[float]) -> dict[int, float | None]:
    """The 50th, 95th and 99th percentile; None without values."""
    found = percentiles(values)
    return dict.fromkeys((50, 95, 99)) if found is None else {50: found.p50, 95: found.p95, 99: found.p99}


def spread(values: list[float]) -> str:
    """'p50 3 ms   p95 8 ms   p99 11 ms'."""
    return "   ".join(f"p{percent} {milliseconds(ms)}" for percent, ms in at(values).items())
