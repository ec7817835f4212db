"""A charge is pursued until the provider is definite; only money that may have moved ever ends in `Unsettled`."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sale.orders import OrderRow
from sale.payments.breaker import MIN_CALLS, PROBES, BreakerState, CircuitBreaker
from sale.payments.charging import (
    BACKOFF_MAX_S,
    BUDGET_S,
    SLOW_AFTER_S,
    TOO_OLD,
    Charge,
    Charged,
    Unsettled,
    backoff_s,
    charge_once,
    charge_until_definite,
)
from sale.payments.provider import (
    ASKED_FOR,
    ATTEMPT_TIMEOUT_S,
    Captured,
    ChargeOutcome,
    Declined,
    NotProcessed,
    Unknown,
)
from schemas.ids import OrderId, ProductId, UserId
from schemas.order_state import Status
from tests.fake_provider import FakePaymentProvider

Run = Callable[[Coroutine[Any, Any, None]], None]
REFUSED = NotProcessed(None, reached=False)
LEFT_S = 10_000.0  # until the provider may have forgotten the key
ORDER = Charge("order-1", 99_999, "USD", age_s=lambda: ASKED_FOR.total_seconds() - LEFT_S + now())
EXPIRED = Charge("order-0", 99_999, "USD", age_s=ASKED_FOR.total_seconds)


class Pursuit:
    """One charge of ORDER on a fake, with everything worth asserting."""

    def __init__(self, outcomes: Sequence[ChargeOutcome], latency_s: float = 0.5) -> None:
        self.provider = FakePaymentProvider(latency_s)
        self.provider.will(ORDER.order_id, outcomes)
        self.breaker = CircuitBreaker()
        self.slow_at: list[float] = []

    async def run(self) -> Charged:
        return await charge_until_definite(
            self.provider,
            self.breaker,
            ORDER,
            on_slow=lambda: self.slow_at.append(now()),
            wall_ms=lambda: int(now() * 1000),
        )


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.mark.parametrize("outcome", [Captured("ch_1"), Declined("card_declined")])
def test_a_definite_answer_ends_it_at_once(in_virtual_time: Run, outcome: Captured | Declined) -> None:
    async def scenario() -> None:
        await asyncio.sleep(3)
        pursuit = Pursuit([outcome])
        assert await pursuit.run() == Charged(outcome, started_at_ms=3_000, answered_at_ms=3_500, attempts=1)
        assert pursuit.slow_at == []

    in_virtual_time(scenario())


def test_an_unknown_outcome_is_asked_again_and_money_is_taken_once(in_virtual_time: Run) -> None:
    async def scenario() -> None:
        pursuit = Pursuit([Unknown("timeout"), Unknown("status 503")])
        pursuit.provider.decide(ORDER.order_id, ORDER.amount_cents, ORDER.currency)
        charged = await pursuit.run()
        assert charged.outcome == Captured("ch_order-1")
        assert charged.attempts == 3
        assert len(pursuit.provider.captures) == 1

    in_virtual_time(scenario())


def test_unknown_for_the_whole_budget_is_unsettled_exactly_then(in_virtual_time: Run) -> None:
    async def scenario() -> None:
        pursuit = Pursuit([Unknown("timeout")] * 99, latency_s=ATTEMPT_TIMEOUT_S)
        charged = await pursuit.run()
        assert charged.outcome == Unsettled("timeout")
        assert now() == pytest.approx(BUDGET_S)
        assert charged.started_at_ms == 0

    in_virtual_time(scenario())


def test_a_provider_that_is_never_reached_unsettles_nobody_however_long_it_takes(in_virtual_time: Run) -> None:
    async def scenario() -> None:
        pursuit = Pursuit([REFUSED, NotProcessed(1.0, reached=True)] * 500, latency_s=0.01)
        charged = await pursuit.run()
        assert charged.outcome == Captured("ch_order-1")
        assert charged.attempts == 1_001
        assert now() > 100 * BUDGET_S
        assert pursuit.slow_at == []

    in_virtual_time(scenario())


def test_the_budget_runs_from_the_first_attempt_that_ended_unknown(in_virtual_time: Run) -> None:
    async def scenario() -> None:
        pursuit = Pursuit([NotProcessed(30.0, reached=True)] + [Unknown("timeout")] * 99)
        assert isinstance((await pursuit.run()).outcome, Unsettled)
        assert 30.0 + BUDGET_S <= now() <= 30.0 + BUDGET_S + 1.0

    in_virtual_time(scenario())


def test_being_told_to_slow_down_after_an_unknown_outcome_does_not_make_it_known(in_virtual_time: Run) -> None:
    async def scenario() -> None:
        pursuit = Pursuit([Unknown("timeout")] + [NotProcessed(1.0, reached=True)] * 99)
        assert (await pursuit.run()).outcome == Unsettled("timeout")
        assert now() == pytest.approx(BUDGET_S)

    in_virtual_time(scenario())


def test_retry_after_is_never_undercut(in_virtual_time: Run) -> None:
    async def scenario() -> None:
        for retry_after_s in (0.0, 1.0, 7.0):
            began = now()
            await Pursuit([NotProcessed(retry_after_s, reached=True)], latency_s=0.0).run()
            assert retry_after_s < now() - began < retry_after_s + 1.0

    in_virtual_time(scenario())


def test_a_charge_unanswered_after_two_seconds_is_reported_once(in_virtual_time: Run) -> None:
    async def scenario() -> None:
        pursuit = Pursuit([Unknown("timeout")] * 2, latency_s=3.0)
        await pursuit.run()
        assert pursuit.slow_at == [SLOW_AFTER_S]

    in_virtual_time(scenario())


def test_an_open_breaker_holds_a_fresh_charge_until_the_provider_lives(in_virtual_time: Run) -> None:
    async def scenario() -> None:
        pursuit = Pursuit([REFUSED] * 20, latency_s=0.0)
        for _ in range(MIN_CALLS):
            pursuit.breaker.record(await pursuit.breaker.acquire(), False)
        charged = await pursuit.run()
        assert charged.outcome == Captured("ch_order-1")
        assert pursuit.breaker.state is BreakerState.CLOSED
        assert (charged.started_at_ms or 0) > 0

    in_virtual_time(scenario())


def test_an_open_breaker_does_not_stretch_the_budget_of_an_unknown_charge(in_virtual_time: Run) -> None:
    async def scenario() -> None:
        pursuit = Pursuit([Unknown("timeout")] * 999, latency_s=0.0)
        for _ in range(MIN_CALLS - 1):
            pursuit.breaker.record(await pursuit.breaker.acquire(), False)
        assert (await pursuit.run()).outcome == Unsettled("timeout")
        assert pursuit.breaker.state is not BreakerState.CLOSED
        assert now() == pytest.approx(BUDGET_S)
        assert pursuit.breaker.waiting == 0

    in_virtual_time(scenario())


def test_nobody_asks_once_the_provider_may_have_forgotten_the_key(in_virtual_time: Run) -> None:
    """An attempt before ours may have taken the money; the provider was away until its memory of it was gone."""

    async def scenario() -> None:
        pursuit = Pursuit([REFUSED] * 999_999, latency_s=0.01)
        charged = await pursuit.run()
        assert charged.outcome == Unsettled(TOO_OLD)
        assert LEFT_S <= now() <= LEFT_S + BACKOFF_MAX_S
        assert pursuit.provider.captures == []

    in_virtual_time(scenario())


def test_a_key_that_grew_too_old_behind_the_breaker_is_not_asked_about_and_leaves_its_place(
    in_virtual_time: Run,
) -> None:
    async def scenario() -> None:
        pursuit = Pursuit([])
        for _ in range(MIN_CALLS):
            pursuit.breaker.record(await pursuit.breaker.acquire(), False)
        asked = [
            asyncio.create_task(charge_once(pursuit.provider, pursuit.breaker, EXPIRED, lambda: True))
            for _ in range(PROBES + 1)
        ]
        assert await asyncio.gather(*asked) == [Unsettled(TOO_OLD)] * (PROBES + 1)
        assert pursuit.provider.attempts == []
        assert (await pursuit.run()).outcome == Captured("ch_order-1")

    in_virtual_time(scenario())


def test_a_charge_that_was_never_tried_has_no_start(in_virtual_time: Run) -> None:
    async def scenario() -> None:
        await asyncio.sleep(LEFT_S)
        charged = await Pursuit([]).run()
        assert charged == Charged(Unsettled(TOO_OLD), None, int(LEFT_S * 1000), attempts=0)

    in_virtual_time(scenario())


def test_cancelling_a_charge_frees_its_place_in_the_breaker(in_virtual_time: Run) -> None:
    async def scenario() -> None:
        pursuit = Pursuit([Unknown("timeout")] * 99)
        task = asyncio.create_task(pursuit.run())
        await asyncio.sleep(3.1)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert pursuit.breaker.state is BreakerState.CLOSED

    in_virtual_time(scenario())


def test_backoff_grows_with_jitter_to_a_cap() -> None:
    for attempt, most_s in ((1, 0.2), (2, 0.4), (3, 0.8), (4, 1.6), (5, 3.0), (9_999, 3.0)):
        assert most_s / 2 <= backoff_s(attempt) <= most_s


@pytest.mark.parametrize("set_by_s", [-3600, 3600])
def test_a_clock_that_is_set_moves_no_rows_age_by_much(set_by_s: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set back, it would have the provider asked after it has forgotten the key, and charge a second time."""
    row = a_row(created=-timedelta(hours=23))
    passed = [0.0]
    monkeypatch.setattr(time, "clock_gettime", lambda _, real=time.clock_gettime: real(_) + passed[0])
    monkeypatch.setattr(time, "time", lambda real=time.time: real() + passed[0] + set_by_s)
    assert not Charge.of(row).too_old or set_by_s > 0
    passed[0] = 3_600.0
    assert Charge.of(row).too_old


def test_a_rows_age_is_what_postgres_says_whatever_this_machines_clock_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda real=time.time: real() - 7_200)
    assert 82_800 <= a_row(created=-timedelta(hours=23)).age_s() < 82_801


def a_row(created: timedelta) -> OrderRow:
    read_at = datetime(2026, 11, 30, tzinfo=UTC)
    return OrderRow(
        id=OrderId("order-1"),
        product_id=ProductId(1),
        user_id=UserId(1),
        quantity=1,
        unit_price_cents=999,
        currency="USD",
        status=Status.AWAITING_PAYMENT,
        reason=None,
        placed_at_ms=0,
        created_at=read_at + created,
        updated_at=read_at + created,
        read_at=read_at,
        charge_started_at_ms=None,
        charge_answered_at_ms=None,
    )
