"""Many callers, few trips; nobody is left without an answer."""

import asyncio
import math
from typing import Any

import pytest
from redis.exceptions import RedisError

from infra.pace import Pace
from infra.redis.pipeliner import CONCURRENT_TRIPS, Pipeliner


class Trips(Pipeliner):
    """A pipeliner whose trips take one turn of the loop (or `takes_s`) and answer with the command itself."""

    def __init__(self, fails: Exception | None = None, pace: Pace | None = None, takes_s: float = 0.0) -> None:
        super().__init__(None, pace=pace)  # type: ignore[arg-type] # never asked
        self._takes_s = takes_s
        self.sizes: list[int] = []
        self.under_way = 0
        self._fails = fails

    async def _send(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        self.sizes.append(len(commands))
        self.under_way += 1
        assert self.under_way <= CONCURRENT_TRIPS
        await asyncio.sleep(self._takes_s)
        self.under_way -= 1
        if self._fails is not None:
            raise self._fails
        return [command[0] for command in commands]


async def test_what_is_asked_in_one_turn_travels_together() -> None:
    trips = Trips()
    assert await asyncio.gather(*(trips.command(i) for i in range(100))) == list(range(100))
    assert trips.sizes == [100]


async def test_while_busy_a_trip_waits_for_company_and_while_not_a_call_goes_at_once() -> None:
    never, always = Pace(math.inf, 0.2), Pace(0.0, 0.2)
    for pace, sizes in ((never, [1, 1]), (always, [2])):
        trips = Trips(pace=pace)
        first = trips.command(1)
        await asyncio.sleep(0.001)
        second = trips.command(2)
        assert (await first, await second) == (1, 2)
        assert trips.sizes == sizes


async def test_what_comes_while_a_trip_is_under_way_is_gathered_by_one_trip_alone() -> None:
    """Neither the trip that ends nor one begun too early takes the first of it, so that the rest would travel apart."""
    trips = Trips(pace=Pace(0.0, 0.2), takes_s=0.1)
    first = trips.command(1)
    await asyncio.sleep(0.02)
    second = trips.command(2)
    while not trips.under_way:  # noqa: ASYNC110 - a trip tells nobody that it sets out
        await asyncio.sleep(0.001)
    third = trips.command(3)
    assert (await first, await second) == (1, 2)
    fourth = trips.command(4)
    assert (await third, await fourth) == (3, 4)
    assert trips.sizes == [2, 2]


async def test_a_call_made_in_the_very_turn_in_which_the_trips_end_is_answered() -> None:
    """Callers that ask again as soon as they are answered meet trips at every stage of their ending."""
    trips = Trips()

    async def ask_on(caller: int) -> None:
        for i in range(200):
            for _ in range((caller + i) % 4):
                await asyncio.sleep(0)
            assert await trips.command(i) == i

    async with asyncio.timeout(20):
        await asyncio.gather(*(ask_on(caller) for caller in range(7)))


@pytest.mark.parametrize("error", [RedisError("gone"), OSError("gone"), ValueError("nonsense")])
async def test_a_trip_that_fails_tells_every_caller(error: Exception) -> None:
    trips = Trips(error)
    answers = await asyncio.gather(*(trips.command(i) for i in range(3)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [RedisError] * 3


async def test_a_caller_that_goes_away_takes_nobody_along() -> None:
    trips = Trips()
    gone, stays = trips.command(1), trips.command(2)
    gone.cancel()
    assert await stays == 2
