"""Rates that were tried in, the next to try out: brackets the highest rate that is sustained. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

STEP = 1.25  # while only good, or only bad, rates are known
CLOSE = 1.06  # good and bad this near each other: found


@dataclass(frozen=True, slots=True)
class Tried:
    rate: float
    sustained: bool


def best(tried: Sequence[Tried]) -> float | None:
    """The highest rate that was sustained below all that were not."""
    limit = min((t.rate for t in tried if not t.sustained), default=float("inf"))
    return max((t.rate for t in tried if t.sustained and t.rate < limit), default=None)


def next_rate(tried: Sequence[Tried]) -> float | None:
    """None where the answer is known closely enough."""
    good = best(tried)
    bad = min((t.rate for t in tried if not t.sustained), default=None)
    if good is None:
        return None if bad is None else bad / STEP
    if bad is None:
        return good * STEP
    return None if bad / good < CLOSE else (good + bad) / 2
