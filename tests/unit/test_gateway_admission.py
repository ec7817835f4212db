"""What a worker refuses from memory: rates by user, and "sold out" for as long as it may be believed."""

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.buying import admission
from gateway.buying.admission import SHEDDING_S, STANDING_S, UNDER_WAY, Overload, RateLimit, SoldOutMemory, UnderWay
from schemas.ids import ProductId, UserId

PRODUCT = ProductId(1)


def test_a_burst_is_a_seconds_worth_and_refills_evenly(clock: Callable[[float], None]) -> None:
    """50 at once, none more, then one each 20 ms, never more than 50 saved up."""
    rates, user = RateLimit(50), UserId(7)
    assert [rates.take(user) for _ in range(51)] == [True] * 50 + [False]
    clock(0.0201)
    assert (rates.take(user), rates.take(user)) == (True, False)
    clock(3_600)
    assert sum(rates.take(user) for _ in range(60)) == 50
    assert rates.take(UserId(8))


def test_the_memory_of_users_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A million users do not fill a worker; the forgotten ones start afresh."""
    monkeypatch.setattr(admission, "TRACKED", 10)
    rates = RateLimit(1)
    assert all(rates.take(UserId(n)) for n in range(1, 100))
    assert not rates.take(UserId(99))
    assert rates.take(UserId(1))


def test_sold_out_is_believed_for_a_second(clock: Callable[[float], None]) -> None:
    """Counted from when Redis was asked, not from when it answered."""
    memory = SoldOutMemory()
    memory.refused(PRODUCT, 1, 1, 10, time.monotonic())
    clock(0.99)
    assert memory.covers(PRODUCT, 1)
    clock(0.02)
    assert not memory.covers(PRODUCT, 1)


@pytest.mark.usefixtures("clock")
def test_a_refused_quantity_says_nothing_about_a_smaller_one() -> None:
    """Three are too many; one may still be there."""
    memory = SoldOutMemory()
    memory.refused(PRODUCT, 3, 1, 10, time.monotonic())
    assert (memory.covers(PRODUCT, 2), memory.covers(PRODUCT, 3), memory.covers(PRODUCT, 4)) == (False, True, True)
    assert not memory.covers(ProductId(2), 3)


@pytest.mark.usefixtures("clock")
def test_only_newer_versions_replace_what_is_remembered() -> None:
    """A late answer of an older version changes nothing, neither a refusal nor an acceptance."""
    memory = SoldOutMemory()
    memory.refused(PRODUCT, 1, 2, 10, time.monotonic())
    memory.refused(PRODUCT, 5, 1, 99, time.monotonic())
    memory.accepted(PRODUCT, 2, 9)
    memory.accepted(PRODUCT, 1, 99)
    assert memory.covers(PRODUCT, 1)
    memory.accepted(PRODUCT, 2, 11)
    assert not memory.covers(PRODUCT, 1)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 3), st.integers(0, 20), st.integers(1, 4)), max_size=30))
def test_what_is_remembered_is_the_newest_refusal(answers: list[tuple[bool, int, int, int]]) -> None:
    """Whatever order answers arrive in, the memory covers nothing that a newer acceptance has disproved."""
    memory = SoldOutMemory()
    for refused, epoch, version, quantity in answers:
        if refused:
            memory.refused(PRODUCT, quantity, epoch, version, time.monotonic())
        else:
            memory.accepted(PRODUCT, epoch, version)
    if memory.covers(PRODUCT, 4):
        newest = max((epoch, version) for refused, epoch, version, _ in answers if refused)
        last = max(
            i for i, (refused, epoch, version, _) in enumerate(answers) if refused and (epoch, version) == newest
        )
        assert all((e, v) <= newest for refused, e, v, _ in answers[last + 1 :] if not refused)


def test_a_crowd_at_once_is_let_in_and_a_queue_that_stands_is_shed(clock: Callable[[float], None]) -> None:
    under_way = UnderWay()
    with ExitStack() as crowd:
        for _ in range(10 * UNDER_WAY):
            crowd.enter_context(under_way.hold())
        clock(STANDING_S)
        crowd.enter_context(under_way.hold())
        clock(0.001)
        with pytest.raises(Overload):
            crowd.enter_context(under_way.hold())
        assert under_way.count == 10 * UNDER_WAY + 1
    with under_way.hold():
        assert under_way.count == 1


def test_while_it_sheds_a_worker_grants_no_further_allowance(clock: Callable[[float], None]) -> None:
    """One moment below the mark is no end of an overload; a while without a refusal is."""
    under_way = UnderWay()
    with ExitStack() as crowd:
        for _ in range(UNDER_WAY):
            crowd.enter_context(under_way.hold())
        clock(0.001)
        crowd.enter_context(under_way.hold())
        clock(STANDING_S + 0.001)
        with pytest.raises(Overload):
            crowd.enter_context(under_way.hold())
    for pause_s, admitted in ((SHEDDING_S * 0.9, 0), (SHEDDING_S * 0.9, 0), (SHEDDING_S * 1.1, 1)):
        clock(pause_s)
        with ExitStack() as crowd:
            for _ in range(UNDER_WAY):
                crowd.enter_context(under_way.hold())
            let_in = 0
            with suppress(Overload):
                crowd.enter_context(under_way.hold())
                let_in = 1
            assert let_in == admitted


def test_a_queue_that_has_gone_in_between_was_not_standing(clock: Callable[[float], None]) -> None:
    under_way = UnderWay()
    for _ in range(5):
        with ExitStack() as crowd:
            for _ in range(UNDER_WAY + 10):
                crowd.enter_context(under_way.hold())
            clock(STANDING_S * 0.9)
            crowd.enter_context(under_way.hold())


def test_a_purchase_that_fails_is_no_longer_under_way() -> None:
    under_way = UnderWay()
    with pytest.raises(ValueError, match="gone"), under_way.hold():
        raise ValueError("gone")
    assert under_way.count == 0
