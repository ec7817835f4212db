"""A trial that is over in, one number out: what the rows of the table are measured by. All pure."""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from .ground import Vitals
from .trial import STEADY_S, Answer, Fault, Outcome, Trial

WINDOW_MS = 1_000
STEP_MS = 250
GROWN_MAX_PERCENT = 5.0
Measure = Callable[[Outcome], float | None]


@dataclass(frozen=True, slots=True)
class Figure:
    """A number and its bound. `timed` ones depend on how busy the machine is: reported, never a violation."""

    what: str
    unit: str
    of: Measure
    at_most: float | None = None
    at_least: float | None = None
    timed: bool = False

    @property
    def bound(self) -> str:
        limits = [(self.at_least, ">="), (self.at_most, "<=")]
        return " ".join(f"{sign} {limit:g}" for limit, sign in limits if limit is not None)

    def met(self, value: float | None) -> bool | None:
        """None where there was nothing to measure."""
        if value is None:
            return None
        return (self.at_most is None or value <= self.at_most) and (self.at_least is None or value >= self.at_least)


def quiet(outcome: Outcome) -> float:
    return outcome.quiet_s


def sells_again(outcome: Outcome) -> float | None:
    """The longest time from a fault's end to a second in which 9 of 10 answers were acceptances, and as many as before."""
    return _longest(_sells_again_after(fault, outcome) for fault in outcome.trial.faults)


def _longest(found: Iterable[float | None]) -> float | None:
    return max((seconds for seconds in found if seconds is not None), default=None)


def _sells_again_after(fault: Fault, outcome: Outcome) -> float | None:
    times = [answer.at_ms for answer in outcome.answers]
    healed_ms = int(fault.until_s * 1000)
    for start_ms in range(healed_ms, max(times, default=0) - WINDOW_MS, STEP_MS):
        window = outcome.answers[bisect_left(times, start_ms) : bisect_left(times, start_ms + WINDOW_MS)]
        accepted = sum(1 for answer in window if answer.outcome == "A")
        if accepted >= 0.9 * len(window) and accepted >= 0.5 * outcome.trial.rate:
            return (start_ms - healed_ms) / 1000
    return None  # the load ended before: nothing to say


def keeps_up_again(outcome: Outcome) -> float | None:
    """The longest time from a fault's end until both stages were less than a second further behind than before, and stayed so."""
    return _longest(_keeps_up_after(fault, outcome.trial) for fault in outcome.trial.faults)


def _keeps_up_after(fault: Fault, trial: Trial) -> float | None:
    looks = [look for look in trial.looks if look.at_s >= fault.until_s]
    for place, first in enumerate(looks):
        steady = [look for look in looks[place:] if look.at_s < first.at_s + STEADY_S]
        if all(map(trial.keeps_up, steady)):
            return first.at_s - fault.until_s
    return None


def most_behind(outcome: Outcome) -> float | None:
    """How old the oldest record was that a stage had not processed, at its worst."""
    return max((look.worst_s for look in outcome.trial.looks if math.isfinite(look.worst_s)), default=None)


def unknown(outcome: Outcome) -> float:
    return outcome.result.unknown


def unknown_seconds(outcome: Outcome) -> float:
    """Clients left without knowing, in seconds' worth of wishes: what was in flight in a process that was killed."""
    return round(outcome.result.unknown / outcome.trial.rate, 3)


def answered(code: str) -> Callable[[Outcome], float]:
    """How many answers of one status or code there were."""

    def of(outcome: Outcome) -> float:
        return sum(count for answer, count in outcome.result.answers.items() if code in answer.split())

    return of


def resets(outcome: Outcome) -> float:
    return answered("reset")(outcome) + answered("unreachable")(outcome)


def units(status: str) -> Callable[[Outcome], float]:
    return lambda outcome: float(outcome.report["postgres"][status]["units"])


def orders(status: str) -> Callable[[Outcome], float]:
    return lambda outcome: float(outcome.report["postgres"][status]["orders"])


def declined_share(outcome: Outcome) -> float:
    """Of the orders that ended, percent."""
    declined = orders("payment_failed")(outcome)
    return round(100 * declined / max(1.0, declined + orders("confirmed")(outcome)), 1)


def unsold(outcome: Outcome) -> float:
    return float(outcome.report["redis"]["available"])


def accepted_share(outcome: Outcome) -> float:
    """Of the wishes' answers, percent."""
    return round(100 * outcome.result.accepted / max(1, outcome.result.requests), 1)


def goodput(overload: float) -> Measure:
    """Orders accepted a second, percent of what the machine can take; `overload` times as many were asked for."""
    return lambda outcome: round(100 * outcome.result.orders / outcome.result.seconds / (outcome.trial.rate / overload))


def measured(name: str) -> Measure:
    """What the faults measured themselves."""
    return lambda outcome: outcome.trial.measured.get(name)


def growth(before: Mapping[int, Vitals], after: Mapping[int, Vitals]) -> dict[str, float]:
    """The most that a process which lived through it has grown (I12), percent."""
    lived = before.keys() & after.keys()
    return {
        "memory grown": max((_percent_more(after[p].memory_mib, before[p].memory_mib) for p in lived), default=0.0),
        "files grown": max((_percent_more(after[p].files, before[p].files) for p in lived), default=0.0),
    }


def _percent_more(after: float, before: float) -> float:
    return round(100 * (after - before) / before, 1)


def refusal_ms(share: float) -> Measure:
    """The latency that this share of the refusals stayed below (nearest rank)."""

    def of(outcome: Outcome) -> float | None:
        return percentile([a.latency_ms for a in outcome.answers if a.outcome == "R"], share)

    return of


def during_refusal_ms(share: float) -> Measure:
    """As `refusal_ms`, of answers that came while a fault lasted."""

    def of(outcome: Outcome) -> float | None:
        return percentile([a.latency_ms for a in outcome.answers if a.outcome == "R" and _within(a, outcome)], share)

    return of


def _within(answer: Answer, outcome: Outcome) -> bool:
    return any(fault.from_s <= answer.at_ms / 1000 < fault.until_s for fault in outcome.trial.faults)


def percentile(values: list[float], share: float) -> float | None:
    if not values:
        return None
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))], 1)
