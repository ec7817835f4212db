"""The relay's decisions, without servers: what counts as stranded, and how often an order is looked at and pushed."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.relay.decisions import (
    MAX_BACKOFF_MS,
    MOVED_BY,
    STRANDED_AFTER_MS,
    Allowance,
    OrderSnapshot,
    PushState,
    decide,
    record_check,
    record_push,
    rotated,
)
from sale.books.due import due_ranges
from schemas.order_state import STORED, Entry, Next, Status
from schemas.topics import CONSUMED_BY, ORDER_STAGE_GROUP, PAYMENT_STAGE_GROUP, PROJECTOR_GROUP

T = 1_000_000
HELD_SINCE_T = OrderSnapshot(entry=Entry.HELD, entry_at_ms=T, row=None, row_updated_ms=0)


def all_at(watermark: int | None) -> dict[str, int | None]:
    return dict.fromkeys(CONSUMED_BY, watermark)


def test_an_order_is_pushed_once_who_should_move_it_is_two_seconds_past_it() -> None:
    assert not decide(HELD_SINCE_T, PushState(), all_at(T + STRANDED_AFTER_MS - 1)).push
    assert decide(HELD_SINCE_T, PushState(), all_at(T + STRANDED_AFTER_MS)).push


def test_nothing_is_pushed_while_kafka_cannot_say_how_far_the_stages_are() -> None:
    assert not decide(HELD_SINCE_T, PushState(), all_at(None)).push


@pytest.mark.parametrize(
    ("row", "entry", "step", "group"),
    [
        (None, Entry.HELD, Next.PLACE, ORDER_STAGE_GROUP),
        (Status.AWAITING_PAYMENT, Entry.HELD, Next.PAY, PAYMENT_STAGE_GROUP),
        (Status.CONFIRMED, Entry.HELD, Next.SETTLE, PROJECTOR_GROUP),
        (Status.PAYMENT_FAILED, Entry.RELEASED, Next.ANNOUNCE, PROJECTOR_GROUP),
    ],
)
def test_only_the_watermark_of_who_should_move_the_order_counts(
    row: Status | None, entry: Entry, step: Next, group: str
) -> None:
    standing = OrderSnapshot(entry=entry, entry_at_ms=T, row=row, row_updated_ms=T)
    others = all_at(T + 60_000) | {group: T}
    assert decide(standing, PushState(), others).step is step
    assert not decide(standing, PushState(), others).push
    assert decide(standing, PushState(), all_at(T) | {group: T + 60_000}).push


def test_a_row_that_has_just_changed_starts_the_wait_anew() -> None:
    standing = OrderSnapshot(entry=Entry.HELD, entry_at_ms=T, row=Status.AWAITING_PAYMENT, row_updated_ms=T + 50_000)
    assert not decide(standing, PushState(), all_at(T + 51_999)).push
    assert decide(standing, PushState(), all_at(T + 52_000)).push


def test_an_order_that_seems_new_at_every_look_is_as_old_as_the_first_of_them() -> None:
    """Redis' clock was set back by an hour: what it had dated before seems to be just reserved, for an hour."""
    memory, now = PushState(), T
    record_check(memory, decide(replace(HELD_SINCE_T, entry_at_ms=now), memory, all_at(now)).step, now)
    assert not decide(replace(HELD_SINCE_T, entry_at_ms=now + 1_999), memory, all_at(now + 1_999)).push
    assert decide(replace(HELD_SINCE_T, entry_at_ms=now + 2_000), memory, all_at(now + 2_000)).push


def test_no_look_is_put_off_so_far_that_it_would_seem_to_be_of_another_clock() -> None:
    (_, now), (from_ms, _) = due_ranges(T)
    decision = decide(HELD_SINCE_T, PushState(), all_at(T - 3_600_000))
    assert now == T
    assert T + decision.next_check_ms < from_ms


def test_unknown_payments_are_left_to_the_reconciler() -> None:
    standing = OrderSnapshot(entry=Entry.HELD, entry_at_ms=T, row=Status.NEEDS_RECONCILIATION, row_updated_ms=T)
    decision = decide(standing, PushState(), all_at(T + 10**9))
    assert decision.step is Next.RECONCILE
    assert not decision.push


def test_books_that_disagree_with_postgres_are_acted_on_wherever_the_watermarks_are() -> None:
    standing = OrderSnapshot(entry=Entry.SOLD, entry_at_ms=T, row=Status.AWAITING_PAYMENT, row_updated_ms=T)
    decision = decide(standing, PushState(), all_at(None))
    assert decision.step is Next.REBUILD
    assert decision.push


def test_an_outage_is_not_multiplied_by_pushing() -> None:
    """The watermark stands still for ten minutes: not one push, and fewer than twenty looks."""
    memory, now, looks = PushState(), T, 0
    while now < T + 600_000:
        decision = decide(HELD_SINCE_T, memory, all_at(T))
        assert not decision.push
        memory.checks += 1
        looks += 1
        now += decision.next_check_ms
    assert looks < 20


def test_pushes_of_one_order_grow_rarer() -> None:
    """Nobody moves it although all stages are at the present: within ten minutes it is pushed about fifteen times."""
    memory, now, pushes = PushState(), T + STRANDED_AFTER_MS, 0
    while now < T + 600_000:
        decision = decide(HELD_SINCE_T, memory, all_at(now))
        memory.checks += 1
        if decision.push:
            record_push(memory, now)
            pushes += 1
        now += decision.next_check_ms
    assert 10 <= pushes <= 16


@given(
    row=st.sampled_from([None, *sorted(STORED)]),
    entry=st.sampled_from([Entry.HELD, Entry.SOLD, Entry.RELEASED]),
    at=st.integers(0, 2 * T),
    updated=st.integers(0, 2 * T),
    memory=st.builds(PushState, st.integers(0, 2 * T), st.integers(0, 100), st.integers(0, 100)),
    watermark=st.none() | st.integers(0, 4 * T),
)
def test_a_push_is_never_early_and_a_look_never_forgotten(
    row: Status | None, entry: Entry, at: int, updated: int, memory: PushState, watermark: int | None
) -> None:
    decision = decide(OrderSnapshot(entry, at, row, updated), memory, all_at(watermark))
    assert decision.next_check_ms > 0
    assert decision.next_check_ms <= max(MAX_BACKOFF_MS, 2 * T + STRANDED_AFTER_MS)
    if decision.push and decision.step in MOVED_BY:
        assert watermark is not None
        assert watermark >= max(at, updated, memory.last_push_ms) + STRANDED_AFTER_MS


def test_pushes_are_limited_by_the_second() -> None:
    allowance = Allowance(1_000)
    total = 0
    for now in range(T, T + 5_000, 100):
        allowed = allowance.refill(now)
        allowance.spend(allowed)
        total += allowed
    assert 4_900 <= total <= 5_100


def test_what_was_not_pushed_is_not_saved_up() -> None:
    allowance = Allowance(1_000)
    allowance.refill(T)
    assert allowance.refill(T + 60_000) == 1_000


def test_each_product_has_its_share_of_the_pushes_and_what_one_leaves_is_the_others() -> None:
    allowance = Allowance(1_000, left=10.0)
    assert allowance.share(3) == 4
    allowance.spend(0)  # the first had nothing to push
    assert allowance.share(2) == 5
    allowance.spend(5)
    assert allowance.share(1) == 5
    allowance.spend(5)
    assert allowance.share(4) == 0


def test_another_product_is_first_each_turn() -> None:
    assert [rotated("abc", turn) for turn in (3, 4, 5)] == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]
