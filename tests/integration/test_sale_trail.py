"""What operators did reaches the log, each action at least once, however long Kafka is away."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from consumers.relay.trail import Trail
from infra.kafka.publisher import Publisher
from sale.operations.sale_control import Action, SaleCommand, control
from schemas.codec import decode
from schemas.events import SaleControlled
from schemas.topics import SALE_ACTIONS

from .books import Sale, a_sale
from .fault_proxy import fault_proxy
from .test_dlq import values
from .test_sale_control import PAUSE, RESUME, stores

WITHIN_S = 60.0


async def told(sale: Sale) -> list[tuple[int, str, int | None, str, str]]:
    """The product's records on the topic."""
    events = [decode(value) for value in await values(sale, SALE_ACTIONS, str(sale.product))]
    return [
        (event.action_id, event.action, event.units or None, event.who, event.why)
        for event in events
        if isinstance(event, SaleControlled)
    ]


async def owed(sale: Sale) -> int:
    count = "SELECT count(*) FROM sale_actions WHERE product_id = $1 AND published_at IS NULL"
    return int(await sale.pool.fetchval(count, sale.product))


async def until_nothing_is_owed(sale: Sale, trail: Trail) -> None:
    async with asyncio.timeout(WITHIN_S):
        while await owed(sale):
            await trail.run_once()
            await asyncio.sleep(0.05)


@asynccontextmanager
async def a_publisher_to(sale: Sale, address: str) -> AsyncIterator[Publisher]:
    publisher = await Publisher.start(sale.settings.model_copy(update={"kafka_bootstrap_servers": address}))
    try:
        yield publisher
    finally:
        await publisher.stop()


async def test_the_topic_says_what_the_table_says() -> None:
    """Who, what and why, in order; when is the row's time."""
    async with a_sale(2) as sale:
        for wish in PAUSE, RESUME, SaleCommand(Action.RESTOCK, "cat", "second delivery", units=5):
            await control(stores(sale), sale.product, wish)
        await until_nothing_is_owed(sale, Trail(sale.pool, sale.publisher))
        rows = await sale.pool.fetch(
            "SELECT id, action, units, who, why FROM sale_actions WHERE product_id = $1 ORDER BY id", sale.product
        )
        assert await told(sale) == [tuple(row) for row in rows]
        assert [row["action"] for row in rows] == ["pause", "resume", "restock"]


async def test_a_leader_that_dies_before_the_mark_is_repeated_by_the_next_with_the_same_id() -> None:
    async with a_sale(2) as sale:
        await control(stores(sale), sale.product, PAUSE)
        await Trail(sale.pool, sale.publisher).run_once()
        assert await owed(sale) == 1
        await until_nothing_is_owed(sale, Trail(sale.pool, sale.publisher))
        assert len(await told(sale)) == 2
        assert len(set(await told(sale))) == 1


async def test_with_kafka_away_the_action_is_in_force_and_its_record_waits_once() -> None:
    """And is written when Kafka is back, by nobody's help."""
    where = urlsplit(f"//{(await _address())}")
    assert where.hostname is not None
    async with a_sale(2) as sale, fault_proxy(where.hostname, where.port or 0) as proxy:
        await proxy.refuse()
        async with a_publisher_to(sale, f"127.0.0.1:{proxy.port}") as publisher:
            trail = Trail(sale.pool, publisher)
            assert (await control(stores(sale), sale.product, PAUSE)).state == "paused"
            for _ in range(5):
                await trail.run_once()
            assert (await owed(sale), publisher.unpublished) == (1, 1)
            assert await told(sale) == []
            await proxy.listen()
            await until_nothing_is_owed(sale, trail)
        assert [action for _, action, *_ in await told(sale)] == ["pause"]


async def _address() -> str:
    async with a_sale(1, opened=False) as sale:
        return sale.settings.kafka_bootstrap_servers.split(",")[0]
