"""Fetches of a consumer on the real broker: few where much comes, none that keeps a lone record waiting."""

import asyncio
import time
from collections import Counter

from infra.kafka.client import NO_WAIT, FetchWait, make_consumer, set_fetch_wait
from infra.kafka.publisher import Publisher
from infra.settings import Settings
from schemas.topics import STOCK_CHANGES

PATIENT = FetchWait(min_bytes=1 << 20, max_wait_ms=400)


async def test_the_broker_gathers_for_a_consumer_that_asks_for_it_and_not_for_one_that_does_not(
    redis_settings: Settings, publisher: Publisher
) -> None:
    """Ten records 20 ms apart: a fetch or two where the broker gathers, one each where it does not."""
    consumer = make_consumer(redis_settings, STOCK_CHANGES.name, auto_offset_reset="latest")
    await consumer.start()
    await consumer.seek_to_end()
    batches: Counter[FetchWait] = Counter()
    try:
        for how in (NO_WAIT, PATIENT):
            set_fetch_wait(consumer, how)
            await asyncio.sleep(NO_WAIT.max_wait_ms / 1000)  # the fetch under way was made as before
            seen = 0
            sending = asyncio.create_task(_drip(publisher, 10))
            while seen < 10:
                got = await consumer.getmany(timeout_ms=5_000)
                seen += sum(map(len, got.values()))
                batches[how] += 1
            await sending
    finally:
        await consumer.stop()
    assert batches[NO_WAIT] > 2 * batches[PATIENT], batches


async def test_a_lone_record_is_handed_over_at_once(redis_settings: Settings, publisher: Publisher) -> None:
    consumer = make_consumer(redis_settings, STOCK_CHANGES.name, auto_offset_reset="latest")
    await consumer.start()
    await consumer.seek_to_end()
    set_fetch_wait(consumer, NO_WAIT)
    try:
        await publisher.publish(STOCK_CHANGES, "1", b"{}")
        started = time.monotonic()
        assert await consumer.getmany(timeout_ms=5_000)
        assert time.monotonic() - started < NO_WAIT.max_wait_ms / 1000
    finally:
        await consumer.stop()


async def _drip(publisher: Publisher, records: int) -> None:
    for _ in range(records):
        await publisher.publish(STOCK_CHANGES, "1", b"{}")
        await asyncio.sleep(0.02)
