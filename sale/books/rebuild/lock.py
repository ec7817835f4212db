"""One rebuild at a time per product: a session lock in Postgres, which ends with its connection."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncpg

from infra.postgres.pool import CONNECT_TIMEOUT_S, UNAVAILABLE
from infra.settings import Settings
from schemas.ids import ProductId

LOCK_SPACE = 0x7412  # pg_advisory_lock(LOCK_SPACE, product id)


LOCK_TIMEOUT_S = 30


@asynccontextmanager
async def books_lock(settings: Settings, product: ProductId, *, wait: bool) -> AsyncIterator[Any | None]:
    """A connection that holds the product's rebuild lock; None if it is taken and `wait` is off."""
    connection = await asyncpg.connect(
        settings.postgres_dsn,
        timeout=CONNECT_TIMEOUT_S,
        command_timeout=LOCK_TIMEOUT_S + 30.0,
        server_settings={"application_name": "thrones-rebuild", "lock_timeout": f"{LOCK_TIMEOUT_S}s"},
    )
    try:
        if wait:
            await connection.execute("SELECT pg_advisory_lock($1, $2)", LOCK_SPACE, product)
            yield connection
        else:
            got = await connection.fetchval("SELECT pg_try_advisory_lock($1, $2)", LOCK_SPACE, product)
            yield connection if got else None
    finally:
        with suppress(*UNAVAILABLE):
            await connection.close(timeout=CONNECT_TIMEOUT_S)  # ends the session, which releases the lock
