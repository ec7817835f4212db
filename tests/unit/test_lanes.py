"""Lanes: a product that has to wait keeps no other waiting, and what gathers meanwhile is its next batch."""

import asyncio

from schemas.ids import ProductId
from streams.lanes import Lanes, by_product

SLOW, FAST = ProductId(1), ProductId(2)


async def test_a_lane_that_waits_holds_up_no_other_and_gathers_its_next_batch() -> None:
    opened, done = asyncio.Event(), []

    async def work(batch: list[str]) -> None:
        if batch[0].startswith("slow"):
            await opened.wait()
        done.append(batch)

    async with asyncio.TaskGroup() as group:
        lanes = Lanes(work, limit=2)
        await lanes.put(group, {SLOW: ["slow 1"], FAST: ["fast 1"]})
        assert done == [["fast 1"]]
        await lanes.put(group, {SLOW: ["slow 2", "slow 3"], FAST: ["fast 2"]})
        await lanes.put(group, {SLOW: ["slow 4"]})
        assert done == [["fast 1"], ["fast 2"]]
        opened.set()
    assert done[2:] == [["slow 1"], ["slow 2", "slow 3"], ["slow 4"]]


async def test_a_lane_that_is_done_begins_anew() -> None:
    done: list[list[int]] = []

    async def work(batch: list[int]) -> None:
        done.append(batch)

    async with asyncio.TaskGroup() as group:
        lanes = Lanes(work, limit=10)
        for n in range(3):
            await lanes.put(group, {FAST: [n]})
    assert done == [[0], [1], [2]]


def test_sorting_keeps_the_order_within_a_product() -> None:
    assert by_product([11, 21, 12, 22], lambda item: item // 10) == {1: [11, 12], 2: [21, 22]}
