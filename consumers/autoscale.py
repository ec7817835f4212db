"""Scales the members of a stage by its lag: up at once, down only after a quiet period, never beyond its partitions.

The KEDA manifest for Kubernetes (infra/deploy/k8s/autoscale.yaml) has the same numbers and the same rule: one member per so
many records of lag, with the stabilisation window and the steps of a horizontal autoscaler.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from consumers.lag import GroupLag, watch
from infra.kafka.watermarks import KAFKA_ERRORS
from infra.settings import Settings
from infra.supervision import registry
from infra.supervision.scaling import require_running_stack, scale
from schemas.topics import CONSUMED_BY, ORDER_STAGE_GROUP, PAYMENT_STAGE_GROUP

# What one member processes in about 10 s on one core. Charges in flight (4,000) count as lag of the payment stage, so more.
LAG_PER_MEMBER: Mapping[str, int] = {ORDER_STAGE_GROUP: 20_000, PAYMENT_STAGE_GROUP: 10_000}
LEAST = 1
EVALUATION_INTERVAL_S = 5.0
UP_AT_MOST, UP_INTERVAL_S = 2, 15.0  # members at a time: each join pauses the others for a moment
DOWN_AT_MOST, DOWN_INTERVAL_S = 1, 30.0
DOWN_AFTER_S = 60.0  # scale down once fewer members have been enough for this long


def wanted(lag: int, per_member: int, partitions: int) -> int:
    """The number of members for this lag."""
    return min(max(math.ceil(lag / per_member), LEAST), partitions)


@dataclass(slots=True)
class Scaler:
    """Decides for one stage. It gets the time as an argument and does no I/O."""

    partitions: int
    per_member: int
    _recent: deque[tuple[float, int]] = field(default_factory=deque)  # readings within DOWN_AFTER_S, and one before
    _changed_at: float = -math.inf

    def decide(self, now_s: float, lag: int, members: int) -> int:
        """The wanted number of members, given `lag` and `members` running."""
        want = wanted(lag, self.per_member, self.partitions)
        self._recent.append((now_s, want))
        while len(self._recent) > 1 and self._recent[1][0] <= now_s - DOWN_AFTER_S:
            self._recent.popleft()
        since_s = now_s - self._changed_at
        shall = members
        if want > members and since_s >= UP_INTERVAL_S:
            shall = min(want, members + UP_AT_MOST)
        elif members > self._members_needed(now_s) and since_s >= DOWN_INTERVAL_S:
            shall = max(self._members_needed(now_s), members - DOWN_AT_MOST)
        if shall != members:
            self._changed_at = now_s
        return shall

    def _members_needed(self, now_s: float) -> int:
        """The highest number wanted within DOWN_AFTER_S; until it has readings for that long, the maximum."""
        looked_long_enough = self._recent[0][0] <= now_s - DOWN_AFTER_S
        return max(want for _, want in self._recent) if looked_long_enough else self.partitions


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One reading of a stage and the decision. `members` is None if Kafka did not answer."""

    at: datetime
    stage: str
    lag: int | None
    drain_s: float | None
    members: int
    shall: int


async def autoscale(
    settings: Settings, stages: Sequence[str], *, every_s: float, per_member: int | None, dry_run: bool
) -> AsyncIterator[Evaluation]:
    """Evaluates and scales for ever; changes nothing while Kafka does not answer. Raises StackError if no stack runs."""
    state_dir = settings.thrones_state_dir
    require_running_stack(state_dir)
    scalers = {stage: Scaler(CONSUMED_BY[stage].partitions, per_member or LAG_PER_MEMBER[stage]) for stage in stages}
    while True:
        try:
            async for groups in watch(settings, every_s):
                for group in groups:
                    if scaler := scalers.get(group.group):
                        yield await _turn(state_dir, group, scaler, dry_run)
        except KAFKA_ERRORS:
            for stage in stages:
                members = _members(state_dir, stage)
                yield Evaluation(datetime.now(), stage, None, None, members, members)
            await asyncio.sleep(every_s)


async def _turn(state_dir: Path, group: GroupLag, scaler: Scaler, dry_run: bool) -> Evaluation:
    lag, members = sum(group.lag.values()), _members(state_dir, group.group)
    shall = scaler.decide(time.monotonic(), lag, members)
    if shall != members and not dry_run:
        await asyncio.to_thread(scale, state_dir, group.group, shall)
    return Evaluation(datetime.now(), group.group, lag, group.drain_s, members, shall)


def _members(state_dir: Path, stage: str) -> int:
    return sum(row["role"] == stage for row in registry.live_rows(state_dir))


def show(look: Evaluation) -> str:
    """One evaluation as a line of text."""
    head = f"{look.at:%H:%M:%S}  {look.stage:<14}"
    if look.lag is None:
        return f"{head} kafka does not answer; {look.members} member(s) stay"
    drains = "" if look.lag == 0 else "  not draining" if look.drain_s is None else f"  empty in {look.drain_s:,.0f} s"
    change = f" -> {look.shall}" if look.shall != look.members else ""
    return f"{head}{look.lag:>9,}{drains:<18}  {look.members} member(s){change}"
