"""The model of Postgres and the real functions are given the same batches: the same outcomes, the same rows afterwards."""

import random
import time
from typing import Any

import asyncpg

from sale.tables.queries import SQL
from schemas.limits import DEFAULT_MAX_QUANTITY

from .postgres_model import PostgresModel

PRODUCTS = (1, 2)
BATCHES = 60


def _batch(chance: random.Random, ids: list[str]) -> list[tuple[Any, ...]]:
    return [
        (
            chance.choice(ids),
            chance.choice((1, 1, 2, 9)),  # 9: a product that is not there
            chance.randint(1, 4),
            chance.randint(1, 3),
            chance.choice((1, 2, 2)),  # epoch 1 is stale
            chance.randint(1, 60),
            5,
            1_800_000_000_000,
            None,
            chance.random() < 0.2,
        )
        for _ in range(chance.randint(1, 8))
    ]


async def test_the_model_places_and_settles_as_the_functions_do(pool: asyncpg.Pool) -> None:
    chance = random.Random(5)
    model = PostgresModel(time.time)
    for product in PRODUCTS:
        model.create_product(product, 25, 999, None)
        await pool.fetch(
            SQL.create_product, product, f"Product {product}", 999, "USD", 25, None, None, None, DEFAULT_MAX_QUANTITY
        )
        for _ in range(2):
            await pool.fetch(SQL.draw_epoch, product)
            model.run(SQL.draw_epoch, (product,))
    ids = [f"0192f000-0000-7000-8000-{n:012x}" for n in range(60)]
    for _ in range(BATCHES):
        wishes = {
            wish[0]: wish for wish in _batch(chance, ids)
        }.values()  # copies that differ are nobody's: no such case
        columns = tuple(map(list, zip(*wishes, strict=True)))
        outcomes = [{row["order_id"]: dict(row) for row in await pool.fetch(SQL.place_orders, *columns)}]
        outcomes.append({row["order_id"]: row for row in model.run(SQL.place_orders, columns)})
        assert outcomes[1] == outcomes[0]
        await _settle_some(pool, model, chance, ids)
    assert await _taken(pool) == {product: row["taken"] for product, row in model.products.items()}
    assert {row["status"] for row in model.orders.values()} >= {"failed", "payment_failed", "confirmed"}


async def _settle_some(pool: asyncpg.Pool, model: PostgresModel, chance: random.Random, ids: list[str]) -> None:
    some = chance.sample(ids, 4)
    statuses = [chance.choice(("confirmed", "payment_failed", "needs_reconciliation")) for _ in some]
    columns = (some, statuses, [None] * 4, [None] * 4, [1] * 4, [2] * 4)
    told = {row["id"]: row["status"] for row in await pool.fetch(SQL.settle_orders, *columns)}
    assert {row["id"]: row["status"] for row in model.run(SQL.settle_orders, columns)} == told


async def _taken(pool: asyncpg.Pool) -> dict[int, int]:
    return {row["id"]: row["taken"] for row in await pool.fetch(SQL.products)}
