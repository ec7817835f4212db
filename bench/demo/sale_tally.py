"""One sale so far: what the buyers' client counts, what watchers see, and what the log says of each order."""

from collections import Counter
from dataclasses import dataclass, field

from bench.order_ends import own_delay_ms
from bench.tally import Tally, percentiles
from schemas.events import OrderStatusChanged
from schemas.order_state import TERMINAL, Status

EXPECTED = {0, 202, 409, 429, 503, 504}  # 0: no answer


@dataclass(slots=True)
class LoggedOrder:
    """Times are ms since 1970. `ended_ms` is the time at which the broker appended the end."""

    status: Status = Status.QUEUED
    stored_ms: int | None = None
    started_ms: int | None = None
    answered_ms: int | None = None
    ended_ms: int | None = None
    own_ms: float | None = None


@dataclass(slots=True)
class SaleTally:
    """Times are ms; delays are measured from the intended time of a click."""

    buyers: int = 0
    clients: Tally = field(default_factory=Tally)
    log: dict[str, LoggedOrder] = field(default_factory=dict)
    stock: int | None = None
    stock_updates: int = 0
    watchers: int = 0

    def record(self, event: OrderStatusChanged, appended_ms: int) -> None:
        """A record of the log. After the end of an order it changes nothing: a repeat is no news."""
        order = self.log.setdefault(event.order_id, LoggedOrder())
        if order.ended_ms is not None:
            return
        order.status = event.status
        if event.status is Status.AWAITING_PAYMENT:
            order.stored_ms = event.at_ms
        elif event.status in TERMINAL:
            order.started_ms, order.answered_ms = (
                event.charge_started_at_ms or None,
                event.charge_answered_at_ms or None,
            )
            order.ended_ms, order.own_ms = appended_ms, own_delay_ms(event, appended_ms)

    @property
    def own_delay_ms(self) -> list[float]:
        """Accepted to ended on the log, less the time of the charge."""
        return [order.own_ms for order in self.log.values() if order.own_ms is not None]

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

    def with_status(self, *statuses: Status) -> int:
        return sum(order.status in statuses for order in self.log.values())

    @property
    def unended(self) -> int:
        """The log may be ahead of the clients' tally."""
        return max(0, self.accepted - self.with_status(*TERMINAL))

    @property
    def took_s(self) -> float:
        """From the first click to the last order's end."""
        last_ms = max((order.ended_ms for order in self.log.values() if order.ended_ms), default=0)
        return max(0.0, last_ms / 1000 - self.clients.first_s)

    @property
    def without_unit(self) -> int:
        """Buyers who went home without an order."""
        return self.clients.arrivals - self.accepted

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
