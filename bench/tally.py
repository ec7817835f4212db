"""Counts and percentiles of the answers in a run. The tallies of several processes add up."""

import math
from collections import Counter
from collections.abc import Sequence

import msgspec

from schemas.limits import SLOWEST_ANSWER_MS


class Followed(msgspec.Struct, frozen=True):
    """An order that its buyer saw to the end. Times are ms since 1970; `clicked_ms` is the intended time of the click."""

    order: str
    clicked_ms: float
    accepted_ms: float
    ended_ms: float


class Tally(msgspec.Struct):
    """Raw observations of one generator process. Latencies are ms from the intended time of the request."""

    arrivals: int = 0  # purchases, each clicked once or more
    arrived_s: float = 0.001  # from the start to the time of the last arrival
    double_clicks: int = 0  # purchases that were clicked several times at once
    requests: int = 0
    accepted_ms: list[float] = []
    refused_ms: list[float] = []
    unknown_ms: list[float] = []
    late_ms: list[float] = []  # the lateness of each arrival: the generator's own delay
    completed_ms: list[float] = []  # followed orders: from the 202 to seeing the end
    outcomes: dict[str, int] = msgspec.field(default_factory=Counter)  # A, U, R
    answers: dict[str, int] = msgspec.field(default_factory=Counter)  # "status code"
    ends: dict[str, int] = msgspec.field(default_factory=Counter)  # followed orders: terminal status, or "not ended"
    followed: list[Followed] = []
    orders: int = 0  # different order ids that got 202
    two_orders: list[str] = []  # keys whose 202s named different orders: must stay empty
    bad_answers: list[str] = []  # forbidden answers: 500s, 429 or 503 without Retry-After, ...
    first_s: float = math.inf
    last_s: float = 0.0
    cpu_s: float = 0.0


class Percentiles(msgspec.Struct, frozen=True):
    count: int
    p50: float
    p95: float
    p99: float
    max: float


class Result(msgspec.Struct, frozen=True):
    """A whole run over all its processes. Rates are per second, times in ms unless named otherwise."""

    mode: str
    seconds: float  # from the first arrival to the last answer
    offered_per_s: float
    answered_per_s: float
    accepted_per_s: float
    arrivals: int
    requests: int
    orders: int
    outcomes: dict[str, int]
    answers: dict[str, int]
    acknowledgements: Percentiles | None
    refusals: Percentiles | None
    unknowns: Percentiles | None
    generator_late: Percentiles | None
    completions: Percentiles | None
    ends: dict[str, int]
    over_5_s: int
    two_orders: list[str]
    bad_answers: list[str]
    generator_cpu_s: float
    generator_cpu_share: float  # of one core, per process

    @property
    def accepted(self) -> int:
        return self.outcomes.get("A", 0)

    @property
    def unknown(self) -> int:
        return self.outcomes.get("U", 0)

    @property
    def refused(self) -> int:
        return self.outcomes.get("R", 0)


def percentiles(values: Sequence[float]) -> Percentiles | None:
    """Nearest rank over all values; None without values."""
    if not values:
        return None
    ordered = sorted(values)

    def at(percent: float) -> float:
        return round(ordered[math.ceil(len(ordered) * percent / 100) - 1], 2)

    return Percentiles(len(ordered), at(50), at(95), at(99), round(ordered[-1], 2))


def summarise(mode: str, tallies: Sequence[Tally]) -> Result:
    """One result from all processes of a run."""
    accepted = _joined([tally.accepted_ms for tally in tallies])
    refused = _joined([tally.refused_ms for tally in tallies])
    unknown = _joined([tally.unknown_ms for tally in tallies])
    seconds = max(0.001, max(tally.last_s for tally in tallies) - min(tally.first_s for tally in tallies))
    arrivals = sum(tally.arrivals for tally in tallies)
    answered = len(accepted) + len(refused)
    cpu_s = sum(tally.cpu_s for tally in tallies)
    return Result(
        mode=mode,
        seconds=round(seconds, 2),
        offered_per_s=round(arrivals / max(tally.arrived_s for tally in tallies), 1),
        answered_per_s=round(answered / seconds, 1),
        accepted_per_s=round(len(accepted) / seconds, 1),
        arrivals=arrivals,
        requests=sum(tally.requests for tally in tallies),
        orders=sum(tally.orders for tally in tallies),
        outcomes=_sum([tally.outcomes for tally in tallies]),
        answers=_sum([tally.answers for tally in tallies]),
        acknowledgements=percentiles(accepted),
        refusals=percentiles(refused),
        unknowns=percentiles(unknown),
        generator_late=percentiles(_joined([tally.late_ms for tally in tallies])),
        completions=percentiles(_joined([tally.completed_ms for tally in tallies])),
        ends=_sum([tally.ends for tally in tallies]),
        over_5_s=sum(1 for ms in (*accepted, *refused, *unknown) if ms > SLOWEST_ANSWER_MS),
        two_orders=[key for tally in tallies for key in tally.two_orders],
        bad_answers=[text for tally in tallies for text in tally.bad_answers],
        generator_cpu_s=round(cpu_s, 2),
        generator_cpu_share=round(cpu_s / seconds / len(tallies), 3),
    )


def _joined(parts: Sequence[list[float]]) -> list[float]:
    return [value for part in parts for value in part]


def _sum(counters: Sequence[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for counter in counters:
        total.update(counter)
    return dict(total.most_common())


def show(result: Result) -> str:
    """The result for people."""
    lines = [
        f"{result.mode}: {result.arrivals:,} arrivals, {result.requests:,} requests in {result.seconds:.1f} s",
        f"offered   {result.offered_per_s:,.1f}/s   answered {result.answered_per_s:,.1f}/s"
        f"   accepted {result.accepted_per_s:,.1f}/s   orders {result.orders:,}",
        "outcomes  " + _counts({name: result.outcomes.get(name, 0) for name in "AUR"}),
        "answers   " + _counts(result.answers),
        _spread("202 after", result.acknowledgements),
        _spread("refused after", result.refusals),
        _spread("unknown after", result.unknowns),
        _spread("completed after", result.completions),
        _spread("generator late", result.generator_late),
        f"generator CPU {result.generator_cpu_s:.1f} s, {result.generator_cpu_share:.0%} of a core a process",
    ]
    if result.ends:
        lines.append("followed  " + _counts(result.ends))
    lines.append(f"answers later than 5 s: {result.over_5_s}   keys with two orders: {len(result.two_orders)}")
    lines += [f"BAD {text}" for text in result.bad_answers[:10]]
    return "\n".join(line for line in lines if line)


def _counts(counts: dict[str, int]) -> str:
    return "   ".join(f"{name}: {count:,}" for name, count in counts.items())


def _spread(what: str, values: Percentiles | None) -> str:
    if values is None:
        return ""
    return f"{what:16}p50 {values.p50:,.1f}   p95 {values.p95:,.1f}   p99 {values.p99:,.1f}   max {values.max:,.1f} ms"
