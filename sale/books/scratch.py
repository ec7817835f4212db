"""Books of a product that nobody sells, to run the scripts on. Nothing of them stays."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from infra.redis.client import Redis
from sale.books import keys
from sale.books.run import present_run
from sale.books.scripts import SCRIPTS
from schemas.ids import OrderId, ProductId, UserId

SCRATCH = ProductId(2**31 - 1)  # the largest id; whoever uses it makes sure that it is no real product
NOBODY = UserId(2**31 - 1)


@asynccontextmanager
async def scratch_books(redis: Redis, orders: Sequence[OrderId]) -> AsyncIterator[None]:
    """Books with a unit for each of these orders, which all are NOBODY's; deleted at the end, with what a killed run left."""
    await _delete(redis, orders)
    try:
        await _open(redis, len(orders))
        yield
    finally:
        await _delete(redis, orders)


async def _open(redis: Redis, units: int) -> None:
    names = [keys.stock(SCRATCH), keys.held(SCRATCH), keys.due(SCRATCH), keys.buyers(SCRATCH)]
    prepared = [keys.prepared(name, 1) for name in names[1:]]
    fields: dict[str, str | int] = {
        "state": "open",
        "initial": units,
        "available": units,
        "held": 0,
        "sold": 0,
        "max_held": units,
    }
    offer: dict[str, str | int] = {"price_cents": 1, "currency": "USD", "name": "scratch"}
    flat = [part for pair in (fields | offer).items() for part in pair]
    await redis.eval(SCRIPTS["open"], 7, *names, *prepared, await present_run(redis), 1, *flat)


async def _delete(redis: Redis, orders: Sequence[OrderId]) -> None:
    """One key at a time: in a cluster they are on different nodes."""
    of_product = [name(SCRATCH) for name in (keys.stock, keys.held, keys.due, keys.buyers, keys.declined)]
    for key in (*of_product, keys.unstored(NOBODY), *map(keys.order, orders)):
        await redis.unlink(key)
