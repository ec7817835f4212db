"""How long the records of a stage's member still have to wait, from counts alone: no clock of another machine is read."""

from collections import deque
from typing import NamedTuple

RATE_WINDOW_S = 1.0
MOST_SAMPLES = 240  # four a second: a minute
ROUGH = 4.0  # a second's rate is rough: at most so many times what the oldest record has waited


class QueueCount(NamedTuple):
    """One queue of a stage: the records that wait there, and how many have passed it so far."""

    waiting: int
    passed: int


class _Sample(NamedTuple):
    at_s: float
    arrived: int
    passed: int


class Backlog:
    """The expected wait of one queue, sampled a few times a second.

    What waits, divided by the rate of the last second. When a rush begins, that rate is still the one of the calm before it:
    so the answer is at most four times the age of the oldest record. Nothing passed at all: that age.
    """

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque(maxlen=MOST_SAMPLES)

    def wait_s(self, queue: QueueCount, now_s: float) -> float:
        arrived = queue.waiting + queue.passed
        self._samples.append(_Sample(now_s, arrived, queue.passed))
        if not queue.waiting:
            return 0.0
        oldest_s = now_s - self._last_time_before_the_oldest(queue.passed)
        since = next(sample for sample in self._samples if now_s - sample.at_s <= RATE_WINDOW_S)
        passed, took_s = queue.passed - since.passed, now_s - since.at_s
        return min(queue.waiting * took_s / passed, ROUGH * oldest_s) if passed else oldest_s

    def _last_time_before_the_oldest(self, passed: int) -> float:
        """The last sample of which everything has passed by now; what waits came after it."""
        return next((s.at_s for s in reversed(self._samples) if s.arrived <= passed), self._samples[0].at_s)
