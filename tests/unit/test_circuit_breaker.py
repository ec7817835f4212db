"""The breaker lets callers through to a living provider, holds them back from a dead one, and fails nobody."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from sale.payments.breaker import (
    MIN_CALLS,
    OPEN_MAX_S,
    OPEN_MIN_S,
    PROBES,
    SILENCE_S,
    WINDOW_CALLS,
    BreakerState,
    CircuitBreaker,
)

Run = Callable[[Coroutine[Any, Any, None]], None]


def now() -> float:
    return asyncio.get_running_loop().time()


async def calls(breaker: CircuitBreaker, count: int, answered: bool) -> None:
    for _ in range(count):
        breaker.record(await breaker.acquire(), answered)


async def opened() -> CircuitBreaker:
    breaker = CircuitBreaker()
    await calls(breaker, MIN_CALLS, answered=False)
    assert breaker.state is BreakerState.OPEN
    return breaker


def test_a_dead_provider_opens_it_and_that_wait_is_declared(in_virtual_time: Run) -> None:
    async def scenario() -> None:
        breaker = CircuitBreaker()
        await calls(breaker, MIN_CALLS - 1, answered=False)
        assert (breaker.state, breaker.declared_wait) == (BreakerState.CLOSED, None)
        await calls(breaker, 1, answered=False)
        assert breaker.state is BreakerState.OPEN
        assert breaker.declared_wait
        assert breaker.opened == 1

    in_virtual_time(scenario())


@pytest.mark.parametrize("failures_in_ten", [0, 5, 8])
def test_a_sick_provider_keeps_it_closed(in_virtual_time: Run, failures_in_ten: int) -> None:
    async def scenario() -> None:
        breaker = CircuitBreaker()
        for call in range(10 * WINDOW_CALLS):
            await calls(breaker, 1, answered=call % 10 >= failures_in_ten)
        assert breaker.state is BreakerState.CLOSED

    in_virtual_time(scenario())


def test_calls_that_time_out_together_do_not_open_it_while_others_are_answered(in_virtual_time: Run) -> None:
    async def scenario() -> None:
        breaker = CircuitBreaker()
        await calls(breaker, 1, answered=True)
        await asyncio.sleep(SILENCE_S / 2)
        await calls(breaker, 10 * WINDOW_CALLS, answered=False)
        assert breaker.opened == 0
        await asyncio.sleep(SILENCE_S)
        await calls(breaker, 1, answered=False)
        assert breaker.opened == 1

    in_virtual_time(scenario())


def test_only_a_few_probes_pass_when_it_half_opens_and_the_rest_wait_without_failing(in_virtual_time: Run) -> None:
    async def scenario() -> None:
        breaker = await opened()
        callers = [asyncio.create_task(breaker.acquire()) for _ in range(100)]
        await asyncio.sleep(OPEN_MIN_S * 0.7)
        assert not any(caller.done() for caller in callers)
        await asyncio.sleep(OPEN_MIN_S)
        assert breaker.state is BreakerState.HALF_OPEN
        assert [caller.done() for caller in callers] == [True] * PROBES + [False] * (100 - PROBES)
        assert breaker.waiting == 100 - PROBES
        breaker.record(callers[0].result(), True)
        await asyncio.gather(*callers)
        assert (breaker.state, breaker.waiting) == (BreakerState.CLOSED, 0)

    in_virtual_time(scenario())


def test_it_asks_a_dead_provider_a_few_times_every_few_seconds_for_ever(in_virtual_time: Run) -> None:
    async def scenario() -> None:
        breaker = await opened()
        probes = 0

        async def caller() -> None:
            nonlocal probes
            while True:
                permit = await breaker.acquire()
                probes += 1
                breaker.record(permit, False)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(caller()) for _ in range(1_000)]
            await asyncio.sleep(600)
            for task in tasks:
                task.cancel()
        assert 600 / OPEN_MAX_S * PROBES * 0.9 <= probes <= 600 / (OPEN_MAX_S * 0.75) * PROBES * 1.1

    in_virtual_time(scenario())


def test_a_failure_from_before_it_closed_does_not_count_again(in_virtual_time: Run) -> None:
    async def scenario() -> None:
        breaker = CircuitBreaker()
        late = [await breaker.acquire() for _ in range(1_000)]
        await calls(breaker, MIN_CALLS, answered=False)
        breaker.record(late.pop(), True)
        assert breaker.state is BreakerState.CLOSED
        await asyncio.sleep(2 * SILENCE_S)
        for permit in late:
            breaker.record(permit, False)
        assert breaker.state is BreakerState.CLOSED

    in_virtual_time(scenario())


def test_a_cancelled_probe_gives_its_place_to_the_next_caller(in_virtual_time: Run) -> None:
    async def scenario() -> None:
        breaker = await opened()
        callers = [asyncio.create_task(breaker.acquire()) for _ in range(PROBES + 1)]
        await asyncio.sleep(2 * OPEN_MIN_S)
        breaker.record(callers[0].result(), None)
        await asyncio.sleep(0)
        assert callers[-1].done()
        assert breaker.state is BreakerState.HALF_OPEN

    in_virtual_time(scenario())


def test_a_caller_cancelled_in_the_turn_it_was_permitted_gives_its_place_back(in_virtual_time: Run) -> None:
    async def scenario() -> None:
        breaker = await opened()
        callers = [asyncio.create_task(breaker.acquire()) for _ in range(PROBES + 1)]
        await asyncio.sleep(0)
        breaker._half_open(breaker._period)
        callers[0].cancel()
        await asyncio.wait(callers)
        assert [caller.cancelled() for caller in callers] == [True] + [False] * PROBES

    in_virtual_time(scenario())


def test_a_waiting_caller_that_gives_up_is_forgotten(in_virtual_time: Run) -> None:
    async def scenario() -> None:
        breaker = await opened()
        for _ in range(1_000):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await breaker.acquire()
        assert breaker.waiting == 0

    in_virtual_time(scenario())


def test_callers_that_are_all_cancelled_at_once_are_all_just_cancelled(in_virtual_time: Run) -> None:
    """As by a stage that stops: a probe hands its place on to nobody who has been cancelled in the same turn."""

    async def scenario() -> None:
        breaker = await opened()
        callers = [asyncio.create_task(breaker.acquire()) for _ in range(PROBES + 3)]
        await asyncio.sleep(OPEN_MAX_S)
        permits = [caller.result() for caller in callers[:PROBES]]
        for caller in callers[PROBES:]:
            caller.cancel()
        breaker.record(permits[0], None)
        waited = await asyncio.gather(*callers[PROBES:], return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in waited)

    in_virtual_time(scenario())
