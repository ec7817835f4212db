"""The table by which every actor decides: total, monotone, and enough to bring any order to one end, whoever is killed when."""

import random

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from schemas.order_state import (
    RANK,
    SETTLED,
    STORED,
    TERMINAL,
    UNPAID,
    Entry,
    Next,
    Status,
    advance,
    outcome_of,
    replaces,
)
from tests.unit.order_world import ACTORS, COPIES, Run, World

ROWS = st.sampled_from([None, *sorted(STORED)])
ENTRIES = st.sampled_from(Entry)
OUTCOMES = st.sampled_from([Status.CONFIRMED, Status.PAYMENT_FAILED])
STEPS = st.lists(st.tuples(st.integers(0, COPIES * len(ACTORS) - 1), st.booleans()), max_size=120)


@given(ROWS, ENTRIES, st.booleans())
def test_advance_knows_what_is_owed_in_every_situation(row: Status | None, entry: Entry, current: bool) -> None:
    """Total over every stored row, every entry and both kinds of epoch."""
    assert isinstance(advance(row, entry, current_epoch=current), Next)


@pytest.mark.parametrize("status", sorted(set(Status) - STORED))
def test_a_row_that_postgres_cannot_hold_is_an_error_not_a_guess(status: Status) -> None:
    with pytest.raises(ValueError, match=status):
        advance(status, Entry.HELD)


@pytest.mark.parametrize(
    ("row", "entry", "current", "owed"),
    [
        (None, Entry.HELD, True, Next.PLACE),
        (None, Entry.HELD, False, Next.PLACE),
        (None, Entry.NONE, True, Next.PLACE),
        (None, Entry.NONE, False, Next.RESERVE_AGAIN),
        (None, Entry.SOLD, True, Next.REBUILD),
        (None, Entry.RELEASED, True, Next.REBUILD),
        (Status.AWAITING_PAYMENT, Entry.HELD, True, Next.PAY),
        (Status.AWAITING_PAYMENT, Entry.NONE, True, Next.REBUILD),
        (Status.AWAITING_PAYMENT, Entry.SOLD, True, Next.REBUILD),
        (Status.NEEDS_RECONCILIATION, Entry.HELD, True, Next.RECONCILE),
        (Status.NEEDS_RECONCILIATION, Entry.NONE, True, Next.RECONCILE),
        (Status.CONFIRMED, Entry.HELD, True, Next.SETTLE),
        (Status.PAYMENT_FAILED, Entry.HELD, False, Next.SETTLE),
        (Status.FAILED, Entry.HELD, True, Next.SETTLE),
        (Status.CONFIRMED, Entry.SOLD, True, Next.ANNOUNCE),
        (Status.PAYMENT_FAILED, Entry.RELEASED, True, Next.ANNOUNCE),
        (Status.CONFIRMED, Entry.NONE, True, Next.DONE),
        (Status.FAILED, Entry.NONE, False, Next.DONE),
    ],
)
def test_the_table_of_the_design_line_by_line(row: Status | None, entry: Entry, current: bool, owed: Next) -> None:
    assert advance(row, entry, current_epoch=current) is owed


@given(st.sampled_from(sorted(TERMINAL)), ENTRIES, st.booleans())
def test_nothing_is_charged_or_placed_for_an_order_that_ended(row: Status, entry: Entry, current: bool) -> None:
    """A terminal row is only ever settled, announced or left alone."""
    assert advance(row, entry, current_epoch=current) in {Next.SETTLE, Next.ANNOUNCE, Next.DONE}


@given(ROWS, ENTRIES, st.booleans())
def test_only_a_finished_order_without_an_entry_is_left_alone(row: Status | None, entry: Entry, current: bool) -> None:
    """R2: an entry means effects outstanding, so DONE is never the answer while there is one."""
    done = advance(row, entry, current_epoch=current) is Next.DONE
    assert done == (row in TERMINAL and entry is Entry.NONE)


@given(st.sampled_from(Status), st.sampled_from(Status))
def test_a_reader_takes_only_higher_ranks_and_an_end_stays(new: Status, old: Status) -> None:
    """No status replaces itself, none goes back, and nothing replaces a terminal one."""
    assert not (replaces(new, old) and replaces(old, new))
    assert not replaces(old, old)
    if old in TERMINAL:
        assert not replaces(new, old)
    elif new in TERMINAL:
        assert replaces(new, old)


@given(st.lists(st.sampled_from(sorted(set(Status) - TERMINAL))), st.sampled_from(sorted(TERMINAL)), st.randoms())
def test_events_in_any_order_leave_a_reader_with_the_end(steps: list[Status], end: Status, rng: random.Random) -> None:
    """Delivery may reorder and repeat as it likes."""
    events = [*steps, *steps, end]
    rng.shuffle(events)
    shown = Status.QUEUED
    for status in events:
        shown = status if replaces(status, shown) else shown
    assert shown is end


def test_the_sets_fit_together() -> None:
    """Every status has a rank; terminal ones share the highest; what Postgres stores is unpaid or terminal."""
    assert set(RANK) == set(Status)
    assert STORED == UNPAID | TERMINAL
    assert not UNPAID & TERMINAL
    assert {RANK[s] for s in TERMINAL} == {max(RANK.values())}
    assert {outcome_of(s) for s in TERMINAL} == SETTLED
    assert outcome_of(Status.CONFIRMED) is Entry.SOLD


@hypothesis_settings(max_examples=400)
@given(outcome=OUTCOMES, unknown=st.integers(0, 3), refused=st.booleans(), steps=STEPS)
@example(outcome=Status.CONFIRMED, unknown=0, refused=False, steps=[(0, False), (0, True)])
def test_an_order_reaches_one_end_whoever_is_killed_between_any_two_steps(
    outcome: Status, unknown: int, refused: bool, steps: list[tuple[int, bool]]
) -> None:
    """Promises 2, 3 and 4 for one order: after any kills it ends once, charged at most once, with no entry left."""
    run = Run(World(outcome, unknown, refused))
    run.step(0, kill=False)  # the reservation was made: from here on it is a promise
    for slot, kill in steps:
        run.step(slot, kill)
    run.settle_down()
    run.check_quiet()


@pytest.mark.parametrize(
    "plant",
    [
        "the entry dies when it is settled",
        "settling again moves again",
        "unknown is taken for declined",
        "a new key for each attempt",
        "no status guard",
    ],
)
def test_each_planted_bug_is_caught(plant: str) -> None:
    """The control: the same kills find an order lost, stuck, charged twice or told two ends when a rule is broken."""
    assert any(not survives(plant, seed) for seed in range(2_000))


def survives(plant: str, seed: int) -> bool:
    rng = random.Random(seed)
    outcome = rng.choice([Status.CONFIRMED, Status.PAYMENT_FAILED])
    run = Run(World(outcome, rng.randint(0, 2), refused=False, plant=plant))
    try:
        run.step(0, kill=False)
        for _ in range(rng.randint(0, 120)):
            run.step(rng.randrange(COPIES * len(ACTORS)), rng.random() < 0.3)
        run.settle_down()
        run.check_quiet()
    except AssertionError:
        return False
    return True


def test_without_a_planted_bug_the_same_kills_find_nothing() -> None:
    """So it is the planted bug that is caught above."""
    assert all(survives("", seed) for seed in range(500))
