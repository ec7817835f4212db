"""What the servers must hold before a process may start: the schema, the topics, and settings that the promises rest on.

Idempotent, safe from many at once.
"""

from infra.kafka.client import create_topics
from infra.logs import get_logger
from infra.server_settings import assert_servers
from infra.settings import Settings
from sale.tables.migrate import migrate_to_newest

log = get_logger()


async def provision(settings: Settings) -> None:
    """Apply missing migrations, create missing topics. Raises WrongServerSettings outside the development profile."""
    await migrate_to_newest(settings)
    await create_topics(settings)
    for setting in await assert_servers(settings):
        log.warning("a server setting breaks the promises", setting=str(setting))
