"""One run of one row: what its faults may use, what happened, and what was seen of it."""

import asyncio
import math
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from bench.tally import Result
from schemas.topics import ORDER_STAGE_GROUP, PAYMENT_STAGE_GROUP

from .ground import Ground

STEADY_S = 3.0  # so long must a stage keep up: a member that was killed is not behind at once


@dataclass(slots=True)
class Fault:
    """Something done to the stack; times are epoch seconds. It may last."""

    what: str
    from_s: float
    until_s: float


@dataclass(frozen=True, slots=True)
class Look:
    """One look at a running sale."""

    at_s: float
    behind_s: Mapping[str, float]  # by group: age of the oldest record it has not processed; absent: Kafka cannot say

    @property
    def worst_s(self) -> float:
        """Of the two stages."""
        return max(self.behind_s.get(group, math.inf) for group in (ORDER_STAGE_GROUP, PAYMENT_STAGE_GROUP))


@dataclass
class Trial:
    """Handed to a row's faults. `seconds` is how long they should take, `rate` how many wishes a second come in."""

    ground: Ground
    dice: random.Random
    product: int
    seconds: float
    rate: float
    stop: asyncio.Event
    faults: list[Fault] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)  # what the row itself sees, beside the books
    looks: list[Look] = field(default_factory=list)  # of the whole run, as they are taken
    measured: dict[str, float] = field(default_factory=dict)
    started_s: float = field(default_factory=time.time)

    def begin(self, what: str) -> Fault:
        now = time.time()
        fault = Fault(what, now, now)
        self.faults.append(fault)
        print(f"  {now - self.started_s:6.1f} s  {what}", flush=True)
        return fault

    def heal(self, fault: Fault) -> None:
        fault.until_s = time.time()

    @property
    def left_s(self) -> float:
        return self.started_s + self.seconds - time.time()

    @property
    def usually_behind_s(self) -> float:
        """Before the first fault. Commits come once a second, and a payment's only after its charge."""
        first_s = min((fault.from_s for fault in self.faults), default=math.inf)
        calm = [look.worst_s for look in self.looks if self.started_s <= look.at_s < first_s]
        return statistics.median(calm) if calm else 0.0

    def keeps_up(self, look: Look) -> bool:
        """Less than a second further behind than before the first fault."""
        return look.worst_s < self.usually_behind_s + 1.0

    async def until_it_keeps_up(self, at_most_s: float) -> None:
        """Wait until both stages have kept up for STEADY_S, or the time is over."""
        since_s = time.time()
        while (now := time.time()) < since_s + at_most_s:
            lately = [look for look in self.looks if look.at_s > max(since_s, now - STEADY_S)]
            if now > since_s + STEADY_S and lately and all(self.keeps_up(look) for look in lately):
                return
            await asyncio.sleep(0.2)

    async def every(self, seconds: float, act: Callable[[], Awaitable[None]]) -> None:
        """Act, about every so many seconds (a little earlier or later, by the dice), until the time is over."""
        while self.left_s > 0:
            await asyncio.sleep(min(self.left_s, seconds * self.dice.uniform(0.7, 1.3)))
            if self.left_s > 0:
                await act()


class Answer(msgspec.Struct, frozen=True):
    """A line of the client log, as far as figures need it."""

    at_ms: int
    outcome: str
    latency_ms: float
    status: int = 0
    code: str = ""


@dataclass(frozen=True)
class Outcome:
    """A trial that is over: what the figures are computed from."""

    trial: Trial
    result: Result
    report: Mapping[str, Any]  # of the product, as `thrones audit --json` has it
    answers: list[Answer]  # in the order of their times
    quiet_s: float  # from the end of the load, or of the healing if that was later
