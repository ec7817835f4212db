"""Applies the migrations beside this file to a database."""

import asyncio
from pathlib import Path

import asyncpg
from pogo_core.util import migrate

from infra.postgres.pool import CONNECT_TIMEOUT_S
from infra.settings import Settings

MIGRATIONS = Path(__file__).with_name("migrations")
MIGRATION_LOCK = 0x7412_0001  # advisory lock keys of this project start with 0x7412


async def migrate_to_newest(settings: Settings) -> None:
    """Applies missing migrations. Several processes may run it at once: one applies them, the others wait."""
    connection = await asyncpg.connect(settings.postgres_dsn, timeout=CONNECT_TIMEOUT_S)
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", MIGRATION_LOCK)
        await migrate.apply(connection, MIGRATIONS, schema_name="public")
    finally:
        await asyncio.wait_for(connection.close(), CONNECT_TIMEOUT_S)
