"""Batches the script calls of many tasks into few round trips: the calls made during one trip form the next one.

Trips are small when idle and large when busy. A cancelled caller does not cancel the calls of the others.
"""

import asyncio
from collections.abc import Mapping, Sequence
from hashlib import sha1
from typing import Any

from redis.exceptions import NoScriptError, RedisError

from infra.pace import Pace
from infra.redis.client import Redis
from infra.redis.trips import Argument, Command, NotSent

MAX_TRIP = 512  # calls in one round trip: bounds how long Redis is held by one client
CONCURRENT_TRIPS = 2


def digest(script: str) -> str:
    """The SHA-1 by which EVALSHA names a script."""
    return sha1(script.encode(), usedforsecurity=False).hexdigest()


class Pipeliner:
    """`call` a script by name; it returns the script's reply, or raises the RedisError with which the script ended.

    While `pace` is busy, a trip waits briefly for more calls; otherwise it starts at once.
    """

    def __init__(self, redis: Redis, scripts: Mapping[str, str] | None = None, pace: Pace | None = None) -> None:
        """`scripts`: Lua sources by name. A script that Redis does not know is loaded first."""
        self._redis = redis
        self._scripts = scripts or {}
        self._digests = {name: digest(body) for name, body in self._scripts.items()}
        self._pace = pace or Pace()
        self._gathering = False
        self._waiting: list[tuple[Command, asyncio.Future[Any]]] = []
        self._trips: set[asyncio.Task[None]] = set()  # a reference, so that no running task is garbage collected
        self._lanes_taken = 0

    def call(self, script: str, keys: Sequence[str], *args: Argument) -> asyncio.Future[Any]:
        return self.command("EVALSHA", self._digests[script], len(keys), *keys, *args)

    def command(self, *command: Argument) -> asyncio.Future[Any]:
        """Send any other command in the same trips."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._waiting.append((command, future))
        self._pace.add(1, loop.time())
        if self._lanes_taken < CONCURRENT_TRIPS and not self._gathering:
            self._start_trip()
        return future

    async def call_many(self, script: str, calls: Sequence[tuple[Sequence[str], Sequence[Argument]]]) -> list[Any]:
        """Replies in order; raises the first error, after all have been answered."""
        return await _all([self.call(script, keys, *args) for keys, args in calls])

    async def replies(self, commands: Sequence[Command]) -> list[Any]:
        """As `call_many`, of other commands."""
        return await _all([self.command(*command) for command in commands])

    def _start_trip(self) -> None:
        self._lanes_taken += 1
        self._gathering = True
        trip = asyncio.get_running_loop().create_task(self._run_trips())
        self._trips.add(trip)
        trip.add_done_callback(self._trips.discard)

    async def _run_trips(self) -> None:
        await asyncio.sleep(self._pace.wait_s)  # sleep(0) at least: the other tasks of this loop iteration call first
        self._gathering = False
        while self._waiting and not self._gathering:  # else the next trip takes them
            batch, self._waiting = self._waiting[:MAX_TRIP], self._waiting[MAX_TRIP:]
            await self._answer(batch)
        # Without an await since the check of `_waiting`: a later call sees that a trip has ended and starts one.
        self._lanes_taken -= 1

    async def _answer(self, batch: list[tuple[Command, asyncio.Future[Any]]]) -> None:
        """Give every caller its reply or an error, also when the trip fails: no caller is left waiting."""
        try:
            replies = await self._send([command for command, _ in batch])
        except RedisError as error:
            replies = [error] * len(batch)
        except Exception as error:  # the outcome is unknown: the callers decide
            replies = [RedisError(repr(error))] * len(batch)
        for (_, future), reply in zip(batch, replies, strict=True):
            if future.done():
                continue
            if isinstance(reply, Exception):
                future.set_exception(reply)
                future.exception()  # marks it as retrieved: the caller may have gone
            else:
                future.set_result(reply)

    async def _send(self, commands: list[Command]) -> list[Any]:
        replies = await self._redis.round_trip(commands)
        unknown = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:  # Redis has restarted: these calls definitely did not run
            for i, reply in zip(unknown, await self._load_and_repeat([commands[i] for i in unknown]), strict=True):
                replies[i] = reply
        return replies

    async def _load_and_repeat(self, commands: list[Command]) -> list[Any]:
        # Errors concern these commands only: the others of the trip have their replies.
        try:
            for body in self._scripts.values():
                await self._redis.script_load(body)
        except (RedisError, OSError) as error:
            return [NotSent(str(error))] * len(commands)
        try:
            return await self._redis.round_trip(commands)
        except RedisError as error:
            return [error] * len(commands)


async def _all(replies: Sequence[asyncio.Future[Any]]) -> list[Any]:
    answered: list[Any] = []
    errors: list[RedisError] = []
    for reply in replies:
        try:  # cheaper than gather: most are there when they are looked at
            answered.append(await reply)
        except RedisError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return answered


__all__ = ["NotSent", "Pipeliner", "digest"]
