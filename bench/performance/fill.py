"""Fills the log with orders without HTTP: reserves in Redis and publishes, as a gateway does."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bench.own_stack import claims, read_tokens
from infra.kafka.publisher import Publisher
from sale.books.inventory import Held, Inventory, Reservation
from schemas.ids import UserId, new_order_id
from schemas.topics import ORDERS

from .stack import MeasuredSale, Stack

CHUNK = 500
PRICE_CENTS = 999


@asynccontextmanager
async def filler(stack: Stack) -> AsyncIterator["Filler"]:
    publisher = await Publisher.start(stack.settings)
    try:
        users = [UserId(int(claims(token)["sub"])) for token in read_tokens(stack.tokens)]
        yield Filler(Inventory(stack.redis), publisher, users)
    finally:
        await publisher.stop()


class Filler:
    def __init__(self, inventory: Inventory, publisher: Publisher, users: list[UserId]) -> None:
        self._inventory = inventory
        self._publisher = publisher
        self._users = itertools.cycle(users)

    async def fill(self, sale: MeasuredSale, orders: int) -> None:
        """Raises RuntimeError when one is refused."""
        for done in range(0, orders, CHUNK):
            wishes = [self._wish(sale) for _ in range(min(CHUNK, orders - done))]
            answers = await asyncio.gather(*(self._inventory.reserve(wish) for wish in wishes))
            held = [answer.value for answer in answers if isinstance(answer, Held)]
            if len(held) < len(answers):
                raise RuntimeError(f"{sale.name}: an order was refused: {answers}")
            records = [(ORDERS, wish.order_id, value) for wish, value in zip(wishes, held, strict=True)]
            await self._publisher.publish_all(records)

    def _wish(self, sale: MeasuredSale) -> Reservation:
        return Reservation(
            order_id=new_order_id(),
            user_id=next(self._users),
            product_id=sale.product,
            quantity=1,
            unit_price_cents=PRICE_CENTS,
            currency="USD",
        )
