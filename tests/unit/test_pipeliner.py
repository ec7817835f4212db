"""Many callers, few trips; nobody is left without an answer."""

import asyncio
from typing import Any

import pytest
from redis.exceptions import RedisError

from infra.inventory.pipeliner import LANES, Pipeliner


class Trips(Pipeliner):
    """A pipeliner whose trips take one turn of the loop and answer with the command itself."""

    def __init__(self, fails: Exception | None = None) -> None:
        super().__init__(redis=None)  # type: ignore[arg-type] # never asked
        self.sizes: list[int] = []
        self.under_way = 0
        self._fails = fails

    async def _send(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        self.sizes.append(len(commands))
        self.under_way += 1
        assert self.under_way <= LANES
        await asyncio.sleep(0)
        self.under_way -= 1
        if self._fails is not None:
            raise self._fails
        return [command[0] for command in commands]


async def test_what_is_asked_in_one_turn_travels_together() -> None:
    trips = Trips()
    assert await asyncio.gather(*(trips.command(i) for i in range(100))) == list(range(100))
    assert trips.sizes == [100]


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
