"""Searches the highest sustained rate: chooses the next rate from those tried. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

STEP = 1.25  # the factor while only good or only bad rates are known
CLOSE = 1.06  # the search ends when good and bad rates are this close


@dataclass(frozen=True, slots=True)
class Tried:
    rate: float
    sustained: bool


def best(tried: Sequence[Tried]) -> float | None:
    """The highest sustained rate below all rates that were not sustained."""
    limit = min((t.rate for t in tried if not t.sustained), default=float("inf"))
    return max((t.rate for t in tried if t.sustained and t.rate < limit), default=None)


def next_rate(tried: Sequence[Tried]) -> float | None:
    """None if the result is precise enough."""
    good = best(tried)
    bad = min((t.rate for t in tried if not t.sustained), default=None)
    if good is None:
        return None if bad is None else bad / STEP
    if bad is None:
        return good * STEP
    return None if bad / good < CLOSE else (good + bad) / 2
