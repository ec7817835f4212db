"""Decides whether the relay pushes an order, and when it checks the order next. Pure: no I/O, no clock.

An order is stranded when its next group has passed its last push, and the order has not moved.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from infra.backoff import doubled
from sale.books.due import MAX_CHECK_DELAY_MS
from schemas.order_state import Entry, Next, Status, advance
from schemas.topics import ORDER_STAGE_GROUP, PAYMENT_STAGE_GROUP, PROJECTOR_GROUP

STRANDED_AFTER_MS = (
    2_000  # how much older than the watermark the last push must be: clocks differ, and the publisher lingers
)
FIRST_RECHECK_MS = 100
FIRST_REPUSH_MS = 2_000
MAX_BACKOFF_MS = 60_000

WatermarksByGroup = Mapping[str, int | None]  # by group; None if Kafka does not answer
T = TypeVar("T")

# The group that should move an order that waits for this step.
MOVED_BY: dict[Next, str] = {
    Next.PLACE: ORDER_STAGE_GROUP,
    Next.PAY: PAYMENT_STAGE_GROUP,
    Next.SETTLE: PROJECTOR_GROUP,
    Next.ANNOUNCE: PROJECTOR_GROUP,
}


@dataclass(frozen=True, slots=True)
class OrderSnapshot:
    """One order as read: first the watermarks, then the entry, then the row, so that neither is older than the watermarks.

    All times are in the relay's own clock; the ages of entry and row come from Redis and Postgres.
    """

    entry: Entry
    entry_at_ms: int
    row: Status | None
    row_updated_ms: int
    current_epoch: bool = True


@dataclass(slots=True)
class PushState:
    """The checks and pushes of this leader for one order. A new leader starts empty: its first push may be superfluous."""

    last_push_ms: int = 0
    pushes: int = 0
    checks: int = 0  # since the last push
    step: Next | None = None  # the next step at the last check
    owed_since_ms: int = 0  # as seen by this leader


@dataclass(frozen=True, slots=True)
class Decision:
    """The next step, whether to push it now, and the delay of the next check."""

    step: Next
    push: bool
    next_check_ms: int


def decide(standing: OrderSnapshot, memory: PushState, watermarks: WatermarksByGroup) -> Decision:
    """Raises ValueError for a row status that Postgres never stores."""
    step = advance(standing.row, standing.entry, current_epoch=standing.current_epoch)
    if step is Next.REBUILD:
        return Decision(step, push=True, next_check_ms=doubled(FIRST_REPUSH_MS, memory.pushes, MAX_BACKOFF_MS))
    group = MOVED_BY.get(step)
    if group is None:
        return Decision(step, push=False, next_check_ms=doubled(FIRST_REPUSH_MS, memory.checks, MAX_BACKOFF_MS))
    watermark = watermarks.get(group)
    came_here_ms = max(standing.entry_at_ms, standing.row_updated_ms)
    if memory.step is step:  # its clock may have been set back since: it would seem new for an hour
        came_here_ms = min(came_here_ms, memory.owed_since_ms)
    stranded_from_ms = max(came_here_ms, memory.last_push_ms) + STRANDED_AFTER_MS
    if watermark is not None and stranded_from_ms <= watermark:
        return Decision(step, push=True, next_check_ms=doubled(FIRST_REPUSH_MS, memory.pushes, MAX_BACKOFF_MS))
    wait_ms = stranded_from_ms - watermark if watermark is not None else 0
    wait_ms = min(max(wait_ms, doubled(FIRST_RECHECK_MS, memory.checks, MAX_BACKOFF_MS)), MAX_CHECK_DELAY_MS)
    return Decision(step, push=False, next_check_ms=wait_ms)


def record_check(memory: PushState, step: Next, now_ms: int) -> None:
    memory.checks += 1
    if memory.step is not step:
        memory.step, memory.owed_since_ms = step, now_ms


def record_push(memory: PushState, now_ms: int) -> None:
    memory.last_push_ms, memory.pushes, memory.checks = now_ms, memory.pushes + 1, 0


@dataclass(slots=True)
class Allowance:
    """A token bucket of `per_second` pushes: unused ones are saved for at most a second."""

    per_second: int
    left: float = 0.0
    filled_at_ms: int = 0

    def refill(self, now_ms: int) -> int:
        """The number of pushes allowed now, for all products together."""
        elapsed_ms = max(0, now_ms - self.filled_at_ms) if self.filled_at_ms else 100
        self.left = min(float(self.per_second), self.left + self.per_second * elapsed_ms / 1000)
        self.filled_at_ms = now_ms
        return int(self.left)

    def share(self, waiting: int) -> int:
        """The share of one of `waiting` products, rounded up. What it does not use is left for the others."""
        return -(-int(self.left) // waiting)

    def spend(self, count: int) -> None:
        self.left -= count


def rotated(items: Sequence[T], by: int) -> list[T]:
    """Another item is first each time, so that the rest from rounding goes to each in turn."""
    at = by % len(items)
    return [*items[at:], *items[:at]]
