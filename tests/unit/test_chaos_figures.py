"""How a trial that is over becomes a number: recovery counted from the fault's end, over whole seconds of answers."""

import asyncio
import random
from unittest.mock import MagicMock

import pytest

from bench.tally import Tally, summarise
from tests.chaos.figures import Figure, during_refusal_ms, growth, keeps_up_again, most_behind, percentile, sells_again
from tests.chaos.ground import Vitals
from tests.chaos.trial import Answer, Fault, Look, Outcome, Trial

STARTED_S = 1_800_000_000.0


async def outcome(
    faults: list[Fault], answers: list[Answer] | None = None, looks: list[Look] | None = None, rate: float = 10.0
) -> Outcome:
    trial = Trial(MagicMock(), random.Random(1), 1, 10.0, rate, asyncio.Event(), faults=faults, looks=looks or [])
    trial.started_s = STARTED_S
    result = summarise("open", [Tally(first_s=STARTED_S, last_s=STARTED_S + 10)])
    return Outcome(trial, result, {}, answers or [], 0.0)


def fault(from_s: float, until_s: float) -> Fault:
    return Fault("a fault", STARTED_S + from_s, STARTED_S + until_s)


def answers(*spans: tuple[float, float, str]) -> list[Answer]:
    """Ten a second from, until (seconds from the start)."""
    return [
        Answer(at_ms=int((STARTED_S + tenth / 10) * 1000), outcome=kind, latency_ms=tenth)
        for from_s, until_s, kind in spans
        for tenth in range(int(from_s * 10), int(until_s * 10))
    ]


async def test_a_sale_goes_on_at_the_first_whole_second_of_acceptances_after_the_fault() -> None:
    """Refused until second 5; the fault ended at 3: the first window of acceptances begins 2 s after it."""
    seen = answers((0, 2, "A"), (2, 5, "R"), (5, 10, "A"))
    assert sells_again(await outcome([fault(2, 3)], seen)) == 2.0
    assert sells_again(await outcome([fault(7, 8)], seen)) == 0.0


async def test_a_sale_that_never_goes_on_has_no_time_and_does_not_meet_a_bound() -> None:
    """Also when the few answers there are are acceptances: half of the wishes must be answered."""
    thin = answers((0, 2, "A"), (2, 10, "R"))
    assert sells_again(await outcome([fault(2, 3)], thin)) is None
    assert sells_again(await outcome([fault(2, 3)], answers((0, 10, "A")), None, 100.0)) is None
    bound = Figure("sells again after", "s", sells_again, at_most=3)
    assert bound.met(None) is None


async def test_stages_keep_up_when_both_are_seen_to_be_less_than_a_second_behind() -> None:
    looks = [
        Look(STARTED_S + 1, {"order-stage": 0.1, "payment-stage": 0.1}),
        Look(STARTED_S + 4, {"order-stage": 0.1, "payment-stage": 7.0}),
        Look(STARTED_S + 5, {"order-stage": 0.1}),
        Look(STARTED_S + 6, {"order-stage": 0.1, "payment-stage": 0.2}),
    ]
    over = await outcome([fault(2, 3)], looks=looks)
    assert keeps_up_again(over) == 3.0
    assert most_behind(over) == 7.0


async def test_a_member_that_was_killed_keeps_up_again_when_it_does_so_for_good() -> None:
    """It looks well for a second: what it has not read is not old yet. A later fault's lag is not an earlier one's."""
    behind = {1: 0.1, 3.1: 0.2, 3.6: 0.9, 5: 3.0, 8: 2.0, 9: 0.4, 12.5: 0.1, 14: 9.0}
    looks = [Look(STARTED_S + at, {"order-stage": 0.1, "payment-stage": seconds}) for at, seconds in behind.items()]
    over = await outcome([fault(3, 3), fault(13, 13.5)], looks=looks)
    assert keeps_up_again(over) == 6.0


async def test_being_behind_is_counted_from_where_they_usually_stand() -> None:
    """A commit a second, and a payment's charge before it, are no lag of a fault's."""
    behind = {1: 1.6, 4: 2.7, 5: 2.5}
    looks = [Look(STARTED_S + at, {"order-stage": 0.1, "payment-stage": seconds}) for at, seconds in behind.items()]
    assert keeps_up_again(await outcome([fault(2, 3)], looks=looks)) == 2.0


async def test_refusals_are_measured_within_the_fault_only() -> None:
    seen = answers((0, 2, "R"), (2, 4, "R"), (4, 6, "R"))
    assert during_refusal_ms(0.99)(await outcome([fault(2, 4)], seen)) == 39


def test_growth_is_the_worst_process_that_lived_through_it() -> None:
    before = {1: Vitals(100, 10), 2: Vitals(100, 20), 3: Vitals(100, 10)}
    after = {1: Vitals(104, 10), 2: Vitals(90, 21), 4: Vitals(500, 99)}
    assert growth(before, after) == {"memory grown": 4.0, "files grown": 5.0}
    assert growth({}, after) == {"memory grown": 0.0, "files grown": 0.0}


def test_percentiles_are_nearest_rank() -> None:
    assert percentile([float(n) for n in range(100)], 0.99) == 99
    assert percentile([5.0], 0.99) == 5
    assert percentile([], 0.99) is None


@pytest.mark.parametrize(
    ("figure", "value", "met", "bound"),
    [
        (Figure("f", "s", sells_again, at_most=3), 3.0, True, "<= 3"),
        (Figure("f", "s", sells_again, at_most=3), 3.1, False, "<= 3"),
        (Figure("f", "s", sells_again, at_least=1, at_most=1), 0.0, False, ">= 1 <= 1"),
    ],
)
def test_a_bound_is_met_or_not_and_said(figure: Figure, value: float, met: bool, bound: str) -> None:
    assert (figure.met(value), figure.bound) == (met, bound)
