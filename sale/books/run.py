"""The run of Redis: the time in which it keeps its data without a break, named by its replication id as a primary.

A server gets a new id when it starts and when it becomes a primary again. So the id also changes when a process takes over
the data of an older replica, while `run_id` stays the same. A replica has no run, and no books are made for it. The scripts
use the same rule.
"""

from collections.abc import Mapping

from redis.exceptions import ReadOnlyError

from infra.redis.client import Redis
from infra.redis.trips import CommandSource
from sale.books import keys

SECTION = "replication"  # of INFO


def run_of(replication: Mapping[str, object]) -> str | None:
    """The run, from the section of INFO as redis-py parses it; None for a replica."""
    return str(replication["master_replid"]) if replication["role"] == "master" else None


def run_in(info: bytes) -> str | None:
    """The run, from the text of INFO."""
    return run_of(dict(line.split(":", 1) for line in info.decode().split("\r\n") if ":" in line))


async def present_run(redis: Redis) -> str:
    """The run of the server that answers. Raises ReadOnlyError for a replica."""
    run = run_of(await redis.info(SECTION))
    if run is None:
        raise ReadOnlyError("redis is a replica: no books are made for it")
    return run


async def record_verified(redis: Redis, run: str) -> None:
    """Store the run in which the books of all products are in force, unless it is stored already."""
    if await redis.get(keys.BOOKS_RUN) != run.encode():
        await redis.set(keys.BOOKS_RUN, run)


async def all_verified(source: CommandSource) -> bool:
    """Whether the books of all products have been in force in the present run. Raises RedisError."""
    verified, replication = await source.replies([("GET", keys.BOOKS_RUN), ("INFO", SECTION)])
    return verified is not None and verified.decode() == run_in(replication)
