"""kill -9 of every process of the system during a steady sale: nothing promised is lost, nothing sold or charged twice.

The load never stops; processes are killed one after the other, and the books are asked once the load has ended.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Sequence
from typing import Any

import msgspec
import pytest

from bench.tally import Result, show

from .stack import Stack, gone
from .test_sale import books

pytestmark = pytest.mark.timeout(240)

RATE = 150
BETWEEN_S = 1.5  # after a replaced process has registered itself, before the next kill
FIRST_AFTER_S = 2.0
LAST_S = 4.0  # of load after the last replacement
LOAD_MAX_S = 150.0
RESTART_MAX_S = 20.0  # with every core busy; the supervisor itself waits half a second
STOCK = 100_000


async def _sale_with(stack: Stack, faults: Awaitable[None]) -> tuple[int, Result]:
    """A steady sale that goes on until `faults` have happened, and a little longer."""
    product = await asyncio.to_thread(stack.new_product, STOCK)
    stop = asyncio.Event()
    plan = {
        "mode": "open",
        "rate": RATE,
        "seconds": LOAD_MAX_S,
        "double_clicks": 0.1,
        "timeout_s": 8.0,
        "connections": 2_000,
    }
    load = asyncio.create_task(stack.buy(product, stop, **plan))
    try:
        await asyncio.sleep(FIRST_AFTER_S)
        await faults
        assert not load.done(), "the faults took longer than the load"
        await asyncio.sleep(LAST_S)
        stop.set()
        result = await load
    finally:
        load.cancel()
    print(show(result))
    return product, result


async def _kill_each(stack: Stack, roles: Sequence[str]) -> dict[str, float]:
    took: dict[str, float] = {}
    for role in roles:
        took[role] = round(await stack.kill_and_wait(role), 2)
        print(f"{role}: replaced after {took[role]} s")
        await asyncio.sleep(BETWEEN_S)
    return took


def _outcomes_since(stack: Stack, product: int, since_s: float) -> Counter[str]:
    lines = stack.client_log(product).read_bytes().splitlines()
    answers = [msgspec.json.decode(line) for line in lines]
    return Counter(answer["outcome"] for answer in answers if answer["at_ms"] > since_s * 1000)


async def _balanced(stack: Stack, product: int, result: Result) -> dict[str, Any]:
    """The books within 60 s of the load's end, and what clients were told against them."""
    assert (result.two_orders, result.bad_answers) == ([], [])
    return books(await asyncio.to_thread(stack.audit, product))


async def test_each_application_process_dies_once_during_a_sale(stack: Stack) -> None:
    """A gateway worker, both stages, relay, projector and reconciler: each is replaced, the sale goes on meanwhile."""
    roles = ("gateway", "order-stage", "payment-stage", "relay", "projector", "reconciler")
    took: dict[str, float] = {}

    async def faults() -> None:
        took.update(await _kill_each(stack, roles))

    product, result = await _sale_with(stack, faults())
    assert max(took.values()) < RESTART_MAX_S, took
    found = await _balanced(stack, product, result)
    assert result.over_5_s == 0
    assert result.accepted > 0.95 * result.requests, result.answers
    # In flight in a killed gateway worker: no more than its share of a second's arrivals.
    assert result.unknown < RATE, result.answers
    assert found["log"]["accepted"] >= result.orders


async def test_each_server_dies_once_during_a_sale(stack: Stack) -> None:
    """Redis, Kafka, Postgres and the provider: refusals meanwhile are definite, then the sale goes on by itself."""
    roles = ("redis", "kafka", "postgres", "payment-gateway")

    async def faults() -> None:
        await _kill_each(stack, roles)

    product, result = await _sale_with(stack, faults())
    served = await asyncio.to_thread(_outcomes_since, stack, product, time.time() - LAST_S)
    assert served["A"] > 0.8 * sum(served.values()), f"the sale did not go on: {served}"
    await _balanced(stack, product, result)


async def test_the_supervisor_dies_during_a_sale_its_children_stop_and_up_resumes_without_loss(stack: Stack) -> None:
    children = [row["pid"] for row in await asyncio.to_thread(stack.rows) if row["role"] != "supervisor"]

    async def faults() -> None:
        await asyncio.to_thread(stack.kill, "supervisor")
        deadline = time.monotonic() + 30
        while not all(gone(pid) for pid in children):
            assert time.monotonic() < deadline, "children outlived their supervisor"
            await asyncio.sleep(0.1)
        await asyncio.to_thread(stack.up)

    product, result = await _sale_with(stack, faults())
    served = await asyncio.to_thread(_outcomes_since, stack, product, time.time() - LAST_S)
    assert served["A"] > 0.8 * sum(served.values()), f"the sale did not go on: {served}"
    await _balanced(stack, product, result)
