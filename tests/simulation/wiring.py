"""Our modules with ports instead of connections, virtual time instead of the clock, and ids that a seed repeats."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import structlog

from .kafka_ports import ConsumerPort, OffsetsPort, PublisherPort
from .postgres_port import PostgresPort
from .provider import ProviderPort
from .redis_port import RedisPort


@contextmanager
def wired(world: Any) -> Iterator[None]:
    """For as long as the history of this world lasts."""
    before = structlog.get_config()
    with ExitStack() as stack:
        for name, stand_in in _stand_ins(world).items():
            stack.enter_context(patch(name, stand_in))
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
        try:
            yield
        finally:
            structlog.configure(**before)


def _stand_ins(world: Any) -> dict[str, Any]:
    async def pool(*_: Any, **__: Any) -> PostgresPort:
        return PostgresPort(world)

    async def publisher(*_: Any) -> PublisherPort:
        return PublisherPort(world)

    def redis(*_: Any, **__: Any) -> RedisPort:
        return RedisPort(world)

    def consumer(_: Any, topic: str | None = None, group: str | None = None, **options: Any) -> ConsumerPort:
        return ConsumerPort(world, topic, group, options.get("auto_offset_reset", "earliest"))

    def offsets(_: Any) -> OffsetsPort:
        return OffsetsPort(world)

    async def create_topics(_: Any) -> None:
        world.log.create()

    starts = SimpleNamespace(start=publisher)
    return {
        "asyncpg.connect": pool,
        "consumers.audit.readers.make_consumer": consumer,
        "consumers.projector.Watchdog": _Nobody,
        "consumers.projector.connect_redis": redis,
        "consumers.projector.make_consumer": consumer,
        "consumers.reconciler.HttpPaymentProvider": lambda _: ProviderPort(world),
        "consumers.reconciler.Publisher": starts,
        "consumers.reconciler.connect_postgres": pool,
        "consumers.reconciler.connect_redis": redis,
        "consumers.relay.relay.Publisher": starts,
        "consumers.relay.relay.connect_postgres": pool,
        "consumers.relay.relay.connect_redis": redis,
        "consumers.relay.keeper.create_topics": create_topics,
        "gateway.buying.purchases.new_order_id": world.order_id,
        "gateway.watching.tail.make_consumer": consumer,
        "sale.books.rebuild.rebuild.Offsets": offsets,
        "sale.books.rebuild.sources.make_consumer": consumer,
        "sale.openings.Offsets": offsets,
        "sale.openings.make_consumer": consumer,
        "infra.kafka.watermarks.Offsets": offsets,
        "infra.kafka.watermarks.make_consumer": consumer,
    }


class _Nobody:
    """Instead of the projector's watchdog, whose judgement the stages' are asked for."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    async def run(self) -> None:
        pass
