"""Two looks from outside at a sale: people who watch the stock over SSE, and what the log says of each order."""

import asyncio
from contextlib import suppress

import aiohttp
import msgspec
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from bench.order_ends import status_event_of
from infra.kafka.client import make_consumer
from infra.kafka.offsets import Offsets
from infra.settings import Settings
from schemas.topics import ORDER_STATUS

from .sale_tally import SaleTally

AGAIN_AFTER_S = 0.5


async def watch_stock(session: aiohttp.ClientSession, base_url: str, product_id: int, tally: SaleTally) -> None:
    """One watcher, until cancelled; connects again when the stream ends."""
    while True:
        with suppress(aiohttp.ClientError, TimeoutError, msgspec.DecodeError):
            async with session.get(
                f"{base_url}/sse/stock/{product_id}", timeout=aiohttp.ClientTimeout(total=None, sock_read=40)
            ) as response:
                await _read_stream(response, tally)
        await asyncio.sleep(AGAIN_AFTER_S)


async def _read_stream(response: aiohttp.ClientResponse, tally: SaleTally) -> None:
    tally.watchers += 1
    try:
        async for line in response.content:
            if line.startswith(b"data:"):
                tally.stock = msgspec.json.decode(line[5:], type=dict[str, int])["stock"]
                tally.stock_updates += 1
    finally:
        tally.watchers -= 1


class OrdersOnTheLog:
    """Tails `order-status` without a group, from where it ends now, and records each order of the product."""

    def __init__(self, settings: Settings, product_id: int, tally: SaleTally) -> None:
        self._settings = settings
        self._product_id = product_id
        self._tally = tally
        self._consumer = make_consumer(settings)

    async def open(self) -> None:
        """From here on nothing is missed. Raises KafkaError or OSError."""
        offsets = Offsets(self._settings)
        try:
            ends = await offsets.ends(ORDER_STATUS)
        finally:
            await offsets.close()
        await self._consumer.start()
        self._consumer.assign([TopicPartition(ORDER_STATUS.name, partition) for partition in ends])
        for partition, end in ends.items():
            self._consumer.seek(TopicPartition(ORDER_STATUS.name, partition), end)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            with suppress(KafkaError):
                for records in (await self._consumer.getmany(timeout_ms=200)).values():
                    for record in records:
                        event = status_event_of(record.value, self._product_id)
                        if event is not None:
                            self._tally.record(event, record.timestamp)

    async def close(self) -> None:
        await self._consumer.stop()
