"""Finds which records of a redrive failed again and are dead letters once more."""

import asyncio
from collections.abc import Collection

import asyncpg

from consumers.dead_letters.letters import Letter, letters
from infra.kafka.offsets import Offsets
from infra.kafka.watermarks import unprocessed_from
from infra.settings import Settings
from schemas.topics import CONSUMED_BY

POLL_INTERVAL_S = 0.2
PROCESSED_WITHIN_S = 10.0
_GROUP_OF = {topic.name: group for group, topic in CONSUMED_BY.items()}


async def processed(settings: Settings, topics: Collection[str], within_s: float = PROCESSED_WITHIN_S) -> bool:
    """Waits until the groups of these topics have processed all records that are there now; False on timeout."""
    offsets = Offsets(settings)
    try:
        async with asyncio.timeout(within_s):
            for group in {_GROUP_OF[topic] for topic in topics if topic in _GROUP_OF}:
                await _caught_up(offsets, group)
    except TimeoutError:
        return False
    finally:
        await offsets.close()
    return True


async def _caught_up(offsets: Offsets, group: str) -> None:
    topic = CONSUMED_BY[group]
    ends = await offsets.ends(topic)
    while True:
        if all(at >= ends[p] for p, at in (await unprocessed_from(offsets, group, topic)).items()):
            return
        await asyncio.sleep(POLL_INTERVAL_S)


async def came_back(settings: Settings, pool: asyncpg.Pool, sent: Collection[str]) -> list[Letter]:
    """The new letters that the redrives of the letters `sent` produced."""
    return [letter async for letter in letters(settings, pool) if letter.came_back_from in sent]
