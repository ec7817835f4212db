"""Hashing in a few threads: who waits, who gives way, and that nobody can take it all."""

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from gateway.accounts import passwords
from gateway.accounts.passwords import WAITING_MAX, ThreadQueue
from gateway.http.problems import Problem


class Work:
    """Jobs that end when they are let go, and the addresses they were done for, in order."""

    def __init__(self, lane: ThreadQueue) -> None:
        self.lane = lane
        self.go = threading.Semaphore(0)
        self.done: list[str] = []

    async def of(self, address: str) -> str:
        def work() -> str:
            self.go.acquire(timeout=10)
            self.done.append(address)
            return address

        try:
            return await self.lane.run(work, address)
        except Problem as problem:
            return problem.code

    async def begin(self, address: str, times: int = 1) -> "list[asyncio.Task[str]]":
        tasks = [asyncio.create_task(self.of(address)) for _ in range(times)]
        await asyncio.sleep(0)
        return tasks


@pytest.fixture
async def work() -> AsyncIterator[Work]:
    work = Work(ThreadQueue(1))
    yield work
    work.go.release(100)
    work.lane.close()


async def test_a_flood_from_one_address_neither_keeps_another_out_nor_waiting(work: Work) -> None:
    """The queue is full of one address; another gets a place, which the oldest of them gives up, and the next turn."""
    flood = await work.begin("flood", 1 + WAITING_MAX + 3)
    [buyer] = await work.begin("buyer")
    work.go.release(2 + WAITING_MAX)
    assert await buyer == "buyer"
    assert work.done.index("buyer") == 1
    answers = await asyncio.gather(*flood)
    assert answers == ["flood", "busy"] + ["flood"] * (WAITING_MAX - 1) + ["busy"] * 3


async def test_whoever_is_alone_has_all_places(work: Work) -> None:
    tasks = await work.begin("school", 1 + WAITING_MAX)
    work.go.release(1 + WAITING_MAX)
    assert await asyncio.gather(*tasks) == ["school"] * (1 + WAITING_MAX)


async def test_a_thread_is_taken_until_its_work_ends_and_then_free_again(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Callers give up, before their turn and while it is done; no thread is lost by it and none is used twice."""
    monkeypatch.setattr(passwords, "DEADLINE_S", 0.05)
    assert await asyncio.gather(*map(work.of, "abc")) == ["busy"] * 3
    monkeypatch.setattr(passwords, "DEADLINE_S", 5.0)
    [later] = await work.begin("later")
    assert not later.done()
    work.go.release(2)
    assert await later == "later"
    assert work.done == ["a", "later"]
    work.go.release(1)
    assert await work.of("last") == "last"
