"""Warming up leaves nothing behind, not even what a killed run left."""

import asyncpg
import pytest
from aiokafka.admin import AIOKafkaAdminClient

from infra.kafka.client import new_topic
from infra.kafka.warming import SCRATCH, warm_up
from infra.redis.client import Redis
from infra.settings import Settings
from sale.books.scratch import SCRATCH as SCRATCH_PRODUCT
from sale.operations.warming import ORDERS, SCRATCH_ROW, warm


async def test_records_go_in_and_out_and_the_scratch_topic_is_deleted(settings: Settings) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap_servers)
    await admin.start()
    try:
        for left_by_a_killed_run in (False, True):
            if left_by_a_killed_run:
                await admin.create_topics([new_topic(SCRATCH, settings)])
            assert await warm_up(settings, 0.5) > 0
            assert SCRATCH.name not in await admin.list_topics()
    finally:
        await admin.close()


async def test_orders_pass_redis_and_postgres_and_nothing_of_them_stays(
    settings: Settings, redis: Redis, pool: asyncpg.Pool
) -> None:
    before = await _all_keys(redis)
    warmed = await warm(settings, 0.2)
    assert warmed.orders == ORDERS
    assert warmed.records > 0
    assert await _all_keys(redis) == before
    assert await pool.fetchval("SELECT count(*) FROM orders") == 0
    assert await pool.fetchval("SELECT count(*) FROM products WHERE id = $1", SCRATCH_PRODUCT) == 0


async def test_a_real_product_of_that_number_is_left_alone(
    settings: Settings, redis: Redis, pool: asyncpg.Pool
) -> None:
    await pool.execute(SCRATCH_ROW, SCRATCH_PRODUCT, 7)
    before = await _all_keys(redis)
    with pytest.raises(asyncpg.UniqueViolationError):
        await warm(settings, 0.2)
    assert await _all_keys(redis) == before


async def _all_keys(redis: Redis) -> set[bytes]:
    return {key async for key in redis.scan_iter()}
