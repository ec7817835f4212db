"""What cannot be served in time is refused at once: a stopped stage and a slow one, on a stack of its own."""

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from bench.order_ends import terminal_events
from tests.conftest import settings_from

from .stack import GOOD_WEATHER, Stack

pytestmark = pytest.mark.timeout(240)
SLOTS = 30  # charges at once: 100 a second at 300 ms each
CHARGE = GOOD_WEATHER | {"median_ms": 300, "sigma": 0.1}
BOUND_S = 5.0  # the default of MAX_WAIT_S
LATE_S = 5.0  # reports, readings and rates are a second old together, and a busy machine is late


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with tempfile.TemporaryDirectory(prefix="thrones-e2e-", ignore_cleanup_errors=True) as folder:
        running = Stack(Path(folder) / "state")
        try:
            running.up(WORKER_CONCURRENCY=str(SLOTS), WARM_UP_S="0")
            running.set_weather(CHARGE)
            yield running
        finally:
            running.down()


async def test_while_a_stage_is_stopped_purchases_are_soon_refused_and_what_was_accepted_ends(stack: Stack) -> None:
    product = stack.new_product(100_000)
    (stage,) = stack.rows("order-stage")
    os.kill(stage["pid"], signal.SIGSTOP)
    try:
        stopped = await stack.buy(product, mode="open", rate=60, seconds=15)
    finally:
        os.kill(stage["pid"], signal.SIGCONT)
    assert set(stopped.answers) == {"202", "503 busy"}, stopped.answers
    assert stopped.accepted < 60 * (BOUND_S + LATE_S)
    assert (stopped.bad_answers, stopped.over_5_s) == ([], 0)
    await _balanced(stack, product)
    await _until_admitted(stack)


async def test_a_slow_stage_keeps_nobody_waiting_for_longer_than_the_bound(stack: Stack) -> None:
    """Three times what the slots can charge, for 20 s: without the bound the last one would wait for 40 s."""
    product = stack.new_product(100_000)
    await _until_admitted(stack)
    slow = await stack.buy(product, mode="open", rate=300, seconds=20)
    assert set(slow.answers) == {"202", "503 busy"}, slow.answers
    await _balanced(stack, product)
    waits_s = [wait_s async for wait_s in _waits_s(stack, product)]
    assert len(waits_s) >= slow.accepted
    assert BOUND_S / 4 < max(waits_s) < BOUND_S + LATE_S


async def _balanced(stack: Stack, product: int) -> None:
    report = await asyncio.to_thread(stack.audit, product, wait_s=90)
    assert report["ok"], report["problems"]


async def _until_admitted(stack: Stack) -> None:
    """Buyers come until a whole second's are all admitted. The bound on the time is the test's."""
    product = stack.new_product(100_000)
    while set((await stack.buy(product, mode="open", rate=20, seconds=1)).answers) != {"202"}:
        pass


async def _waits_s(stack: Stack, product: int) -> AsyncIterator[float]:
    """From acceptance until the charge began."""
    async for event, _ in terminal_events(settings_from(stack.env()), product):
        if event.charge_started_at_ms:
            yield (event.charge_started_at_ms - event.placed_at_ms) / 1000
