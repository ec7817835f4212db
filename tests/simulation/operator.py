"""The operator: pauses, resumes and restocks while the sale is on; afterwards settles what nobody else may settle."""

import asyncio
from datetime import timedelta
from typing import Any

import asyncpg
from aiokafka.errors import KafkaError
from redis.exceptions import RedisError

from sale.books.rebuild.rebuild import RebuildImpossible
from sale.operations.operations import OperationRefused, SettledAs, Stores, open_stock, settle
from sale.operations.sale_control import Action, SaleCommand, control
from sale.payments.provider import ASKED_FOR
from schemas.ids import OrderId, ProductId
from schemas.order_state import Status

from .actors import Actor
from .clock import as_datetime
from .kafka_ports import PublisherPort
from .postgres_port import PostgresPort
from .redis_port import RedisPort
from .settings import SETTINGS

FAILURES = (RedisError, KafkaError, OSError, TimeoutError, RebuildImpossible, OperationRefused, asyncpg.PostgresError)


class Operator:
    """A wish that failed half-way is on record: it is put in force by repeating it, or (a restock) by a rebuild."""

    def __init__(self, world: Any, actor: Actor) -> None:
        self._world = world
        ports: Any = RedisPort(world, actor), PostgresPort(world, actor), PublisherPort(world, actor)
        self._stores = Stores(SETTINGS, *ports)

    async def work(self) -> None:
        while True:
            await asyncio.sleep(self._world.random.uniform(1.0, 15.0))
            try:
                await self._turn()
            except FAILURES:
                continue

    async def _turn(self) -> None:
        for product in list(self._world.verdict.restocked):
            await open_stock(self._stores, product, "after a restock")
            self._world.verdict.restocked.discard(product)
        if self._world.chances.fault:
            await self._control(self._world.random.choice(self._world.products))
        await self._settle_what_is_too_old()

    async def _control(self, product: ProductId) -> None:
        action = self._world.random.choice((Action.PAUSE, Action.RESUME, Action.RESUME, Action.RESTOCK))
        self._world.note(f"{action} {product}")
        if action is Action.RESTOCK:
            self._world.verdict.restocked.add(product)
        await control(
            self._stores, product, SaleCommand(action, "operator", "why not", 2 if action is Action.RESTOCK else None)
        )
        self._world.verdict.restocked.discard(product)

    async def _settle_what_is_too_old(self) -> None:
        """As the provider's own ledger says."""
        oldest = as_datetime(self._world.wall_s()) - ASKED_FOR - timedelta(seconds=10)
        for row in list(self._world.postgres.orders.values()):
            if row["status"] == "needs_reconciliation" and row["created_at"] < oldest:
                captured = self._world.provider.has_captured(row["id"])
                outcome: SettledAs = Status.CONFIRMED if captured else Status.PAYMENT_FAILED
                await settle(self._stores, OrderId(row["id"]), outcome, "the ledger says so")
