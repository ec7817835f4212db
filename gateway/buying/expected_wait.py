"""How long an order accepted now would wait in our pipeline; purchases are refused before that exceeds MAX_WAIT_S.

Time at the payment provider is not ours and does not count.
"""

import asyncio
import math
import random
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from gateway.http.problems import Problem
from infra.lifecycle import cancelled
from infra.redis.client import Redis, RedisError
from sale.books.pipeline import REPORT_INTERVAL_S, MemberReport, Pipeline

FRESH_S = 1.0
FORGOTTEN_S = 600.0
LONGEST_RETRY_S = 30
RETRY_SPREAD_S = 2  # so that those who were refused together do not return together

Members = Mapping[tuple[str, str], MemberReport]


@dataclass(slots=True)
class _Seen:
    report: MemberReport
    changed_s: float


@dataclass(slots=True)
class StageWaits:
    """The wait of each stage, from the reports of its members. Times are this process' monotonic clock.

    A member lives while its report changes. If the living ones hold all partitions, the slowest one counts; if not, the stage
    makes nobody wait less than the time since they last did.
    """

    _seen: dict[tuple[str, str], _Seen] = field(default_factory=dict)
    _covered_s: dict[str, float] = field(default_factory=dict)

    def update(self, members: Members, now_s: float) -> float:
        """The sum over all stages, in seconds. A stage that has never reported does not count."""
        self._seen = {name: self._look(name, report, now_s) for name, report in members.items()}
        return sum(self._wait_s(stage, now_s) for stage in {stage for stage, _ in members})

    def forgotten(self, now_s: float) -> Iterable[tuple[str, str]]:
        """Members that have not reported for ten minutes."""
        return [name for name, seen in self._seen.items() if now_s - seen.changed_s > FORGOTTEN_S]

    def _look(self, name: tuple[str, str], report: MemberReport, now_s: float) -> _Seen:
        seen = self._seen.get(name)
        return seen if seen is not None and seen.report == report else _Seen(report, now_s)

    def _wait_s(self, stage: str, now_s: float) -> float:
        covered_s = self._covered_s.setdefault(stage, now_s)
        living = [
            seen.report
            for (of_stage, _), seen in self._seen.items()
            if of_stage == stage and now_s - seen.changed_s <= FRESH_S
        ]
        if living and sum(report.held for report in living) >= max(report.of for report in living):
            self._covered_s[stage] = now_s
            return max(report.wait_ms for report in living) / 1000
        return now_s - covered_s


class ExpectedWait:
    """`seconds` is from the last reading. If Redis does not answer, purchases fail anyway."""

    def __init__(self, redis: Redis, max_wait_s: float) -> None:
        self._pipeline = Pipeline(redis)
        self._max_wait_s = max_wait_s
        self._stages = StageWaits()
        self.seconds = 0.0

    async def run(self) -> None:
        """Until cancelled."""
        while not cancelled():
            with suppress(RedisError, OSError):  # health and purchases report that Redis is down
                await self.refresh(asyncio.get_running_loop().time())
            await asyncio.sleep(REPORT_INTERVAL_S)

    async def refresh(self, now_s: float) -> None:
        self.seconds = self._stages.update(await self._pipeline.read(), now_s)
        for stage, member in self._stages.forgotten(now_s):
            await self._pipeline.forget(stage, member)

    def admit(self) -> None:
        """Raises Problem `busy` for some purchases from half of the bound on, and for all from the whole bound on.

        The wait that we know is half a second old, and with a hard edge the queue would swing around it: random early
        detection (Floyd and Jacobson, 1993).
        """
        refused_share = 2 * self.seconds / self._max_wait_s - 1
        if refused_share > 0 and random.random() < refused_share:
            wait_s = math.ceil(self.seconds)
            raise Problem("busy", retry_after_s=min(random.randint(wait_s, wait_s + RETRY_SPREAD_S), LONGEST_RETRY_S))
