"""Warming up the brokers leaves nothing behind, not even what a killed run left."""

from aiokafka.admin import AIOKafkaAdminClient

from infra.kafka.client import new_topic
from infra.kafka.warming import SCRATCH, warm_up
from infra.settings import Settings


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
