"""When gateways stop selling for want of memory, and when they sell again."""

import asyncio
from typing import Any

import pytest

from gateway.buying import memory_budget
from gateway.buying.memory_budget import MemoryBudget
from infra.redis.client import RedisError
from infra.redis.memory import RedisMemory, read_memory


class Server:
    """Answers INFO with what it is given; an error is raised."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked_all = asyncio.Event()

    async def info(self, _section: str) -> dict[str, Any]:
        if not self.answers:
            self.asked_all.set()
            await asyncio.Event().wait()
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        used, most = answer
        return {"used_memory": used + 50, "maxmemory": most, "mem_not_counted_for_evict": 50}


async def test_it_counts_what_redis_counts() -> None:
    memory = await read_memory(Server((900, 1_000)))  # type: ignore[arg-type] # all that it uses
    assert (memory, memory.share) == (RedisMemory(900, 1_000), 0.9)
    assert RedisMemory(900, 0).share == 0.0, "no limit is never reached"


@pytest.mark.parametrize(
    ("answers", "full"),
    [
        ([(899, 1_000)], False),
        ([(900, 1_000)], True),
        ([(10_000, 0)], False),
        ([(900, 1_000), (899, 1_000)], False),
        ([(900, 1_000), RedisError("away")], True),
        ([RedisError("away"), (900, 1_000)], True),
    ],
    ids=["room", "full", "no limit", "room again", "what was seen last holds", "looked at again"],
)
async def test_it_is_full_from_its_share_on_until_there_is_room(
    answers: list[Any], full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_budget, "REFRESH_INTERVAL_S", 0.0)
    server = Server(*answers)
    budget = MemoryBudget(server, 0.9)  # type: ignore[arg-type] # all that it uses
    looking = asyncio.create_task(budget.run())
    async with asyncio.timeout(5):
        await server.asked_all.wait()
    looking.cancel()
    await asyncio.wait({looking})
    assert budget.full is full
