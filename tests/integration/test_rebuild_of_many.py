"""Rebuilds of many orders, made in bulk: afterwards Redis equals rows and log. bench/rebuild.py measures a million."""

import pytest

from bench.rebuild import History, rebuilt
from sale.operations.operations import connected
from sale.operations.provision import provision
from schemas.ids import ProductId

from .books import DRAW, settings

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize(("orders", "verified"), [(5_000, True), (20_000, False)])
async def test_the_books_of_many_orders_equal_rows_and_log(orders: int, *, verified: bool) -> None:
    """Not `verified`: no order's end counts as announced, so that each of them is held again."""
    product = ProductId(DRAW.randrange(1_000, 2**31 - 1))
    await provision(settings())
    async with connected(settings()) as stores:
        try:
            took_s, faults = await rebuilt(stores, History.of(product, orders), verified=verified)
            print(f"{orders} orders: {took_s:.1f} s")
            assert faults == []
        finally:
            await stores.pool.execute("DELETE FROM orders WHERE product_id = $1", product)
            await stores.pool.execute("DELETE FROM products WHERE id = $1", product)
            await stores.redis.flushdb()
