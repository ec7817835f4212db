"""Stores a batch although Postgres rejects some of its records: the batch is halved down to each rejected record."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from infra.waits import retry_until_ok

from .pool import RECORDS_FAULT, UNAVAILABLE

Record = TypeVar("Record")
Stored = TypeVar("Stored")


async def store(
    records: Sequence[Record],
    write: Callable[[Sequence[Record]], Awaitable[Iterable[Stored]]],
    set_aside: Callable[[Record, Exception], Awaitable[Iterable[Stored]]],
) -> list[Stored]:
    """The results of `write` for all records. While Postgres is unavailable it waits.

    A record that can never be stored goes to `set_aside`, alone, with the error of Postgres.
    """
    if not records:
        return []
    try:
        return list(await retry_until_ok("postgres", UNAVAILABLE, write, records))
    except RECORDS_FAULT as error:
        refused = error
    if len(records) == 1:
        return list(await set_aside(records[0], refused))
    half = len(records) // 2
    return await store(records[:half], write, set_aside) + await store(records[half:], write, set_aside)
