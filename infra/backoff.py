"""Pauses before another attempt: they double up to a limit, with jitter so that callers who failed together spread out.

For schedules that our own state keeps; a call that is simply repeated for a while uses stamina, and one that must succeed uses
`retry_until_ok`. Source: Marc Brooker, "Exponential Backoff and Jitter" (AWS Architecture Blog, 2015).
"""

import random
from typing import TypeVar

Number = TypeVar("Number", int, float)
MOST_DOUBLINGS = 16


def doubled(first: Number, times: int, most: Number) -> Number:
    """`first` after `times` doublings, at most `most`: doubled(2, 3, 60) is 16."""
    return min(first * (1 << min(times, MOST_DOUBLINGS)), most)


def jittered(pause_s: float, least: float = 0.5) -> float:
    """A random pause from `least` of it to all of it."""
    return pause_s * random.uniform(least, 1.0)
