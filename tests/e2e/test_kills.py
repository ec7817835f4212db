"""kill -9 of every process of the system during a steady sale: nothing promised is lost, nothing sold or charged twice.

The load never stops; processes are killed one after the other, and the books are asked once the load has ended.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
import pytest

from bench.tally import Result, show

from .stack import Stack, gone
from .test_sale import books

pytestmark = pytest.mark.timeout(240)

RATE = 150
BETWEEN_S = 1.5  # after a replaced process has registered itself, before the next kill
FIRST_MAX_S = 30.0  # until the load has begun
LAST_S = 1.0  # of load after the last fault
SELLS_AGAIN_MAX_S = 45.0  # with every core busy
STOP_MAX_S = 40.0  # the slowest process may take 25 s to drain
LOAD_MAX_S = 150.0
RESTART_MAX_S = 20.0  # with every core busy; the supervisor itself waits half a second
STOCK = 100_000


async def _sale_with(stack: Stack, faults: Callable[[int], Awaitable[None]]) -> tuple[int, Result]:
    """A steady sale that goes on until `faults` (called with the product) have happened, and a little longer."""
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
        await _under_way(stack, product)
        await faults(product)
        assert not load.done(), "the faults took longer than the load"
        await asyncio.sleep(LAST_S)
        stop.set()
        result = await load
    finally:
        load.cancel()
    print(show(result))
    return product, result


async def _under_way(stack: Stack, product: int) -> None:
    log = stack.client_log(product)
    deadline = time.monotonic() + FIRST_MAX_S
    while not log.exists() or log.read_bytes().count(b"\n") < RATE:
        assert time.monotonic() < deadline, "the sale does not begin"
        await asyncio.sleep(0.1)


async def _kill_each(stack: Stack, roles: Sequence[str]) -> list[float]:
    """Seconds that each took to be replaced."""
    took = []
    for role in roles:
        took.append(await stack.kill_and_wait(role))
        print(f"{role}: replaced after {took[-1]:.1f} s")
        await asyncio.sleep(BETWEEN_S)
    return took


async def _sells_again(stack: Stack, product: int, killed_at_s: float) -> float:
    """Seconds from a kill until orders were accepted again without a break for a second."""
    while True:
        now_s = time.time()
        outcomes = _outcomes(stack, product, now_s - 1.5, now_s - 0.5)
        if now_s - killed_at_s > 2.0 and outcomes["A"] > 0.9 * max(RATE, sum(outcomes.values())):
            return now_s - 1.5 - killed_at_s
        assert now_s - killed_at_s < SELLS_AGAIN_MAX_S, f"no sale any more: {outcomes}"
        await asyncio.sleep(0.2)


def _outcomes(stack: Stack, product: int, from_s: float, to_s: float) -> Counter[str]:
    """What clients were answered between two times (epoch seconds)."""
    found: Counter[str] = Counter()
    for line in reversed(stack.client_log(product).read_bytes().splitlines()):
        answer = msgspec.json.decode(line)
        if answer["at_ms"] < (from_s - 1.0) * 1000:  # lines are in the order of their times, but for a flush's delay
            break
        found[answer["outcome"]] += from_s <= answer["at_ms"] / 1000 < to_s
    return found


async def _balanced(stack: Stack, product: int, result: Result) -> dict[str, Any]:
    """The books within 60 s of the load's end, and what clients were told against them."""
    ended_at = time.monotonic()
    assert (result.two_orders, result.bad_answers) == ([], [])
    found = books(await asyncio.to_thread(stack.audit, product))
    print(f"the books balanced {time.monotonic() - ended_at:.1f} s after the load")
    return found


async def test_each_application_process_dies_once_during_a_sale(stack: Stack) -> None:
    """Each gateway worker, both stages, relay, projector and reconciler: replaced, while the sale goes on."""
    roles = ("gateway", "gateway", "order-stage", "payment-stage", "relay", "projector", "reconciler")
    took: list[float] = []

    async def faults(product: int) -> None:
        took.extend(await _kill_each(stack, roles))

    product, result = await _sale_with(stack, faults)
    assert max(took) < RESTART_MAX_S
    found = await _balanced(stack, product, result)
    assert result.over_5_s == 0
    assert result.accepted > 0.95 * result.requests, result.answers
    # In flight in a killed gateway worker: no more than its share of a second's arrivals.
    assert result.unknown < RATE, result.answers
    assert found["log"]["accepted"] >= result.orders


async def test_each_server_dies_once_during_a_sale(stack: Stack) -> None:
    """Redis, Kafka, Postgres and the provider: refusals meanwhile are definite, then the sale goes on by itself."""

    async def faults(product: int) -> None:
        for role in ("redis", "kafka", "postgres", "payment-gateway"):
            killed_at_s = time.time()
            replaced_s = await stack.kill_and_wait(role)
            again_s = await _sells_again(stack, product, killed_at_s)
            print(f"{role}: replaced after {replaced_s:.1f} s, sells again after {again_s:.1f} s")

    product, result = await _sale_with(stack, faults)
    await _balanced(stack, product, result)


async def test_the_supervisor_dies_during_a_sale_its_children_stop_and_up_resumes_without_loss(stack: Stack) -> None:
    """And nobody has to help: no rebuild by hand, no reset."""
    children = {row["pid"]: row["role"] for row in stack.rows() if row["role"] != "supervisor"}

    async def faults(product: int) -> None:
        stack.kill("supervisor")
        deadline = time.monotonic() + STOP_MAX_S
        while left := [role for pid, role in children.items() if not gone(pid)]:
            assert time.monotonic() < deadline, f"outlived their supervisor: {left}"
            await asyncio.sleep(0.1)
        up_at_s = time.time()
        await asyncio.to_thread(stack.up)
        again_s = await _sells_again(stack, product, up_at_s)
        print(f"supervisor: sells again {again_s:.1f} s after `thrones up`")

    product, result = await _sale_with(stack, faults)
    await _balanced(stack, product, result)
    assert result.over_5_s == 0  # a gateway that is not there yet refuses connections, it keeps nobody waiting
    assert result.unknown < RATE, result.answers
