"""The stages at work without Faust: a record in, its acknowledgement out."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from infra.kafka.publisher import Publisher
from infra.lifecycle import background
from infra.settings import Settings
from sale.books.inventory import Inventory
from sale.payments.provider import PaymentProvider
from sale.settlement import SettlementDesk
from schemas.topics import ORDERS, PAYMENTS
from streams.acks import InOrderAcks
from streams.app import Resources
from streams.dead_letters import DeadLetters
from streams.order_stage import OrderStage
from streams.payment_stage import PaymentStage


@dataclass
class Message:
    value: bytes
    topic: str
    partition: int = 0
    offset: int = 0
    key: bytes = b""
    headers: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Event:
    """What a stage needs of faust's Event."""

    message: Message
    acked: asyncio.Event = field(default_factory=asyncio.Event)

    def ack(self) -> bool:
        self.acked.set()
        return True


@dataclass
class Stage:
    """A stage at work; each record is of a partition of its own, unless `partitions` says otherwise."""

    stage: Any
    acks: Any
    topic: str
    partitions: Iterator[int] = field(default_factory=itertools.count)

    def take(self, value: bytes) -> Event:
        event = Event(Message(value, self.topic))
        self.stage.take(self.acks.take(next(self.partitions), event))
        return event

    async def read(self, *values: bytes) -> None:
        """Returns when the records have been acknowledged."""
        async with asyncio.timeout(30):
            for event in [self.take(value) for value in values]:
                await event.acked.wait()


def _resources(settings: Settings, inventory: Inventory, pool: asyncpg.Pool, publisher: Publisher) -> Resources:
    desk = SettlementDesk(pool, inventory, publisher)
    return Resources(settings, pool, inventory, publisher, desk, DeadLetters(publisher))


@asynccontextmanager
async def order_stage(
    settings: Settings, inventory: Inventory, pool: asyncpg.Pool, publisher: Publisher
) -> AsyncIterator[Stage]:
    acks: Any = InOrderAcks()
    stage = OrderStage(_resources(settings, inventory, pool, publisher), acks)
    async with background(stage.run()):
        yield Stage(stage, acks, ORDERS.name)


@asynccontextmanager
async def payment_stage(
    settings: Settings, inventory: Inventory, pool: asyncpg.Pool, publisher: Publisher, provider: PaymentProvider
) -> AsyncIterator[Stage]:
    @asynccontextmanager
    async def connected() -> AsyncIterator[PaymentProvider]:
        yield provider

    acks: Any = InOrderAcks()
    stage = PaymentStage(_resources(settings, inventory, pool, publisher), acks, connected())
    async with background(stage.run()):
        yield Stage(stage, acks, PAYMENTS.name)
