"""A batch that Postgres refuses for one record's values is halved, down to that record: the others are stored all the same."""

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
    """What `write` makes of all of them; waits through every passing state of Postgres.

    A record that can never be stored goes to `set_aside`, alone, with what Postgres says of it.
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
