"""What the servers must hold before a process may start: the schema and the topics. Idempotent, safe from many at once."""

from .kafka import create_topics
from .postgres.pool import migrate_to_newest
from .settings import Settings


async def provision(settings: Settings) -> None:
    """Apply missing migrations and create missing topics."""
    await migrate_to_newest(settings)
    await create_topics(settings)
