"""What the relay knows of one order in; whether to push it, and when to look again, out. Pure: no I/O, no clock.

An order is stranded when whoever should have moved it has come past its last push and it still stands where it stood.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sale.books.due import MAX_CHECK_DELAY_MS
from schemas.order_state import Entry, Next, Status, advance
from schemas.topics import ORDER_STAGE_GROUP, PAYMENT_STAGE_GROUP, PROJECTOR_GROUP

STRANDED_AFTER_MS = 2_000  # the last push is older by this than the watermark: clocks, and the publisher's own linger
FIRST_RECHECK_MS = 100
FIRST_REPUSH_MS = 2_000
MAX_BACKOFF_MS = 60_000

WatermarksByGroup = Mapping[str, int | None]  # by group; None where Kafka cannot say
T = TypeVar("T")

# Who should move an order that waits for this step.
MOVED_BY: dict[Next, str] = {
    Next.PLACE: ORDER_STAGE_GROUP,
    Next.PAY: PAYMENT_STAGE_GROUP,
    Next.SETTLE: PROJECTOR_GROUP,
    Next.ANNOUNCE: PROJECTOR_GROUP,
}


@dataclass(frozen=True, slots=True)
class OrderSnapshot:
    """One order as it was read: the watermarks first, then the entry, then the row, so that neither is older than them.

    All times are of the relay's own machine; how old an entry or a row is, Redis or Postgres has said.
    """

    entry: Entry
    entry_at_ms: int
    row: Status | None
    row_updated_ms: int
    current_epoch: bool = True


@dataclass(slots=True)
class PushState:
    """What this leader did about an order. A new leader starts from nothing: its first push may be one too many."""

    last_push_ms: int = 0
    pushes: int = 0
    checks: int = 0  # since the last push
    step: Next | None = None  # that was owed at the last look
    owed_since_ms: int = 0  # as far as this leader has seen


@dataclass(frozen=True, slots=True)
class Decision:
    """The step that is owed, whether to take it now, and how long until the next look."""

    step: Next
    push: bool
    next_check_ms: int


def decide(standing: OrderSnapshot, memory: PushState, watermarks: WatermarksByGroup) -> Decision:
    """Raises ValueError for a row status that Postgres never stores."""
    step = advance(standing.row, standing.entry, current_epoch=standing.current_epoch)
    if step is Next.REBUILD:
        return Decision(step, push=True, next_check_ms=_backoff_ms(FIRST_REPUSH_MS, memory.pushes))
    group = MOVED_BY.get(step)
    if group is None:
        return Decision(step, push=False, next_check_ms=_backoff_ms(FIRST_REPUSH_MS, memory.checks))
    watermark = watermarks.get(group)
    came_here_ms = max(standing.entry_at_ms, standing.row_updated_ms)
    if memory.step is step:  # the clock that dated it may have been set back since: it would seem new for an hour
        came_here_ms = min(came_here_ms, memory.owed_since_ms)
    stranded_from_ms = max(came_here_ms, memory.last_push_ms) + STRANDED_AFTER_MS
    if watermark is not None and stranded_from_ms <= watermark:
        return Decision(step, push=True, next_check_ms=_backoff_ms(FIRST_REPUSH_MS, memory.pushes))
    wait_ms = stranded_from_ms - watermark if watermark is not None else 0
    wait_ms = min(max(wait_ms, _backoff_ms(FIRST_RECHECK_MS, memory.checks)), MAX_CHECK_DELAY_MS)
    return Decision(step, push=False, next_check_ms=wait_ms)


def _backoff_ms(first_ms: int, times: int) -> int:
    """100, 200, 400 ... for looks and 2,000, 4,000, 8,000 ... for pushes; at most a minute."""
    return int(min(first_ms * 2 ** min(times, 16), MAX_BACKOFF_MS))


def record_check(memory: PushState, step: Next, now_ms: int) -> None:
    memory.checks += 1
    if memory.step is not step:
        memory.step, memory.owed_since_ms = step, now_ms


def record_push(memory: PushState, now_ms: int) -> None:
    memory.last_push_ms, memory.pushes, memory.checks = now_ms, memory.pushes + 1, 0


@dataclass(slots=True)
class Allowance:
    """A bucket of `per_second` pushes; what is not spent is not saved up for longer than a second."""

    per_second: int
    left: float = 0.0
    filled_at_ms: int = 0

    def refill(self, now_ms: int) -> int:
        """Whole pushes allowed now, of all products together."""
        elapsed_ms = max(0, now_ms - self.filled_at_ms) if self.filled_at_ms else 100
        self.left = min(float(self.per_second), self.left + self.per_second * elapsed_ms / 1000)
        self.filled_at_ms = now_ms
        return int(self.left)

    def share(self, waiting: int) -> int:
        """Of what is left, the part of one of `waiting` products, rounded up; what it leaves is the others'."""
        return -(-int(self.left) // waiting)

    def spend(self, count: int) -> None:
        self.left -= count


def rotated(items: Sequence[T], by: int) -> list[T]:
    """Another one first each time, so that what is left over by rounding goes round."""
    at = by % len(items)
    return [*items[at:], *items[:at]]
