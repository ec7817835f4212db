"""`thrones stock rebuild` under fire: orders arrive and settle while it runs, again and again, and the books balance after it."""

import asyncio
import json

import pytest

from .stack import Stack

pytestmark = pytest.mark.timeout(240)
RATE, REBUILDS, STOCK = 100, 4, 10_000
PAUSE_S = 1.5  # of sale between two rebuilds


async def test_rebuilding_during_a_sale_loses_nothing_and_sells_nothing_twice(stack: Stack) -> None:
    """Books made while gateways reserve and both stages settle equal Postgres and the log, each time."""
    product = await asyncio.to_thread(stack.new_product, STOCK)
    stop = asyncio.Event()
    load = asyncio.create_task(
        stack.buy(product, stop, mode="open", rate=RATE, seconds=120.0, double_clicks=0.1, connections=1_000)
    )
    epochs = []
    try:
        for _ in range(REBUILDS):
            await asyncio.sleep(PAUSE_S)
            done = await asyncio.to_thread(stack.thrones, "stock", "rebuild", str(product), "--json")
            assert done.returncode == 0, done.stdout
            epochs.append(json.loads(done.stdout.splitlines()[-1])["epoch"])
        assert not load.done()
    finally:
        stop.set()
        result = await load
    assert epochs == sorted(set(epochs))
    report = await asyncio.to_thread(stack.audit, product)
    assert report["problems"] == []
    [books] = report["products"]
    assert books["log"]["epochs"] > REBUILDS
    assert books["log"]["accepted"] >= result.orders > RATE
    assert (books["oversold"], books["lost"], books["stranded"], books["charges"]["double"]) == (0, 0, 0, 0)
