"""Prepares the servers before a process starts: the schema, the topics, and a check of settings that the promises need.

It is idempotent, and several processes may run it at once.
"""

from infra.kafka.client import create_topics
from infra.logs import get_logger
from infra.server_settings import require_server_settings
from infra.settings import Settings
from sale.tables.migrate import migrate_to_newest

log = get_logger()


async def provision(settings: Settings) -> None:
    """Applies missing migrations and creates missing topics. Outside development it raises WrongServerSettings."""
    await migrate_to_newest(settings)
    await create_topics(settings)
    for setting in await require_server_settings(settings):
        log.warning("a server setting breaks the promises", setting=str(setting))
