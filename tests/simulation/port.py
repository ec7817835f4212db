"""What a process holds in its hand: a connection of one actor to something in the world.

Every call travels, has its effect at one instant (a step of the world, where anything may be killed), and travels back.
The ports stand in for redis-py, asyncpg, aiokafka, our Publisher and Offsets and the provider, as far as our code uses those.
"""

import asyncio
from typing import Any

from .actors import CURRENT, Actor


class Port:
    """A connection of the current actor to something in the world."""

    def __init__(self, world: Any, actor: Actor | None = None) -> None:
        self.world = world
        self.actor = actor or CURRENT.get()

    async def travel(self) -> None:
        self._still_there()
        await asyncio.sleep(self.world.travel_s())
        while self.world.now_s() < self.actor.paused_until_s:  # noqa: ASYNC110 - virtual time
            await asyncio.sleep(self.actor.paused_until_s - self.world.now_s())
        self._still_there()

    def step(self, what: str) -> None:
        """Something has just had its effect. The actor may not live to learn of it."""
        self.world.step(self.actor, what)
        self._still_there()

    def _still_there(self) -> None:
        if not self.actor.alive:
            raise asyncio.CancelledError
