"""Postgres connections with a deadline on everything: acquiring, a command, a lock, an idle transaction."""

import asyncio
from pathlib import Path

import asyncpg
from pogo_core.util import migrate

from infra.settings import Settings

COMMAND_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 5.0
ACQUIRE_TIMEOUT_S = 2.0
MIGRATIONS = Path(__file__).with_name("migrations")
MIGRATION_LOCK = 0x7412_0001  # advisory lock keys of this project start with 0x7412

UNAVAILABLE = (
    OSError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a connection that was ended in the very moment in which it was used
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.DeadlockDetectedError,
    asyncpg.LockNotAvailableError,
    asyncpg.QueryCanceledError,
    TimeoutError,
)
"""Errors that say nothing about the statement itself: try the same again later (all our writes are guarded)."""


async def connect_postgres(settings: Settings, *, maximum: int | None = None) -> asyncpg.Pool:
    """A pool that opens lazily, so that a process starts (and says so in its health) while Postgres is away."""
    pool = asyncpg.create_pool(
        settings.postgres_dsn,
        min_size=0,
        max_size=maximum or settings.db_pool_max,
        timeout=CONNECT_TIMEOUT_S,
        command_timeout=COMMAND_TIMEOUT_S,
        max_inactive_connection_lifetime=300.0,
        reset=_nothing_to_reset,
        server_settings={
            "application_name": f"thrones-{settings.thrones_role}",
            "statement_timeout": "8s",
            "lock_timeout": "5s",
            "idle_in_transaction_session_timeout": "10s",
        },
    )
    return await pool


async def _nothing_to_reset(_: asyncpg.Connection) -> None:
    """asyncpg's own reset is a query after every use. Nobody changes the session of a pool's connection: no SET, no lock that
    outlives its transaction; an open transaction is rolled back all the same."""


async def migrate_to_newest(settings: Settings) -> None:
    """Apply what is missing of migrations/. Safe to run from many processes at once: one applies, the others wait."""
    connection = await asyncpg.connect(settings.postgres_dsn, timeout=CONNECT_TIMEOUT_S)
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", MIGRATION_LOCK)
        await migrate.apply(connection, MIGRATIONS, schema_name="public")
    finally:
        await asyncio.wait_for(connection.close(), CONNECT_TIMEOUT_S)
