"""Which run of Redis this is: one unbroken life of its data, named by the replication id that it has as a primary.

A server draws the id anew when it starts and whenever it becomes a primary again, so also when the data of an older replica
was put in force while the process lived on; `run_id` would stay the same. A replica has no run: no books are made for it.
The scripts ask for themselves, by the same rule.
"""

from collections.abc import Mapping

from redis.exceptions import ReadOnlyError

from infra.redis.client import Redis
from infra.redis.trips import CommandSource
from sale.books import keys

SECTION = "replication"  # of INFO


def run_of(replication: Mapping[str, object]) -> str | None:
    """The run, of INFO's section as redis-py reads it; None for a replica."""
    return str(replication["master_replid"]) if replication["role"] == "master" else None


def run_in(info: bytes) -> str | None:
    """The same, of INFO's own text."""
    return run_of(dict(line.split(":", 1) for line in info.decode().split("\r\n") if ":" in line))


async def present_run(redis: Redis) -> str:
    """The run of the server that answers now. Raises ReadOnlyError from a replica."""
    run = run_of(await redis.info(SECTION))
    if run is None:
        raise ReadOnlyError("redis is a replica: no books are made for it")
    return run


async def note_verified(redis: Redis, run: str) -> None:
    """Note the run for which every product's books are in force, unless it is noted already."""
    if await redis.get(keys.BOOKS_RUN) != run.encode():
        await redis.set(keys.BOOKS_RUN, run)


async def all_verified(source: CommandSource) -> bool:
    """Whether every product's books were in force in the present run. Raises RedisError."""
    verified, replication = await source.replies([("GET", keys.BOOKS_RUN), ("INFO", SECTION)])
    return verified is not None and verified.decode() == run_in(replication)
