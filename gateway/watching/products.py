"""Products as buyers see them. Stock is what Redis says at this moment; without Redis there is no answer but 503."""

import asyncio
import time
from typing import Any

import asyncpg
from aiohttp import web

from gateway.buying.catalogue import Catalogue, parse_product_id
from gateway.http.problems import Problem
from gateway.http.wire import answer, iso, iso_ms
from infra.postgres.pool import UNAVAILABLE
from infra.redis.client import RedisError
from infra.redis.pipeliner import Pipeliner
from sale.books import keys
from sale.tables.queries import SQL
from schemas.clock import now_ms
from schemas.ids import ProductId
from schemas.limits import DEFAULT_MAX_QUANTITY
from schemas.money import to_decimal

ROWS_FOR_S = 1.0  # the list's rows, without stock
QUERY_TIMEOUT_S = 2.0
FIELDS = (
    "name",
    "price_cents",
    "currency",
    "available",
    "opens_at_ms",
    "closes_at_ms",
    "created_ms",
    "updated_ms",
    "max_quantity",
)


class Products:
    def __init__(self, catalogue: Catalogue, reads: Pipeliner, pool: asyncpg.Pool) -> None:
        self._catalogue = catalogue
        self._reads = reads
        self._pool = pool
        self._rows: tuple[float, list[asyncpg.Record]] = (0.0, [])

    async def one(self, request: web.Request) -> web.Response:
        product = parse_product_id(request.match_info["id"])
        try:
            stock = await self._reads.command("HMGET", keys.stock(product), *FIELDS)
        except RedisError:
            raise Problem("unavailable") from None
        if stock[0] is None or stock[3] is None:
            await self._catalogue.find(product)  # 404, or 503, when it is not that only the books are missing
            raise Problem("stock_not_verified")
        return answer(_from_redis(product, stock))

    async def all(self, _request: web.Request) -> web.Response:
        """Every product; `stock` is null for one whose books are not open yet."""
        rows = await self._listed()
        stocks = [self._reads.command("HGET", keys.stock(ProductId(row["id"])), "available") for row in rows]
        try:
            counts = await asyncio.gather(*stocks)
        except RedisError:
            raise Problem("unavailable") from None
        return answer({"products": [_from_row(row, count) for row, count in zip(rows, counts, strict=True)]})

    async def _listed(self) -> list[asyncpg.Record]:
        read_at, rows = self._rows
        if time.monotonic() - read_at < ROWS_FOR_S:
            return rows
        try:
            rows = await self._pool.fetch(SQL.products, timeout=QUERY_TIMEOUT_S)
        except UNAVAILABLE:
            raise Problem("unavailable") from None
        self._rows = (time.monotonic(), rows)
        return rows


def _from_redis(product: ProductId, stock: list[bytes | None]) -> dict[str, Any]:
    name, price, currency, available, *times, max_quantity = stock
    opens_at, closes_at, created_at, updated_at = (iso_ms(int(at)) if at else None for at in times)
    return {
        "id": product,
        "name": (name or b"").decode(),
        "price": to_decimal(int(price or 0)),
        "currency": (currency or b"").decode(),
        "stock": int(available or 0),
        "maxQuantity": int(max_quantity or DEFAULT_MAX_QUANTITY),
        "opensAt": opens_at,
        "closesAt": closes_at,
        "serverTime": iso_ms(now_ms()),
        "createdAt": created_at,
        "updatedAt": updated_at,
    }


def _from_row(row: asyncpg.Record, available: bytes | None) -> dict[str, Any]:
    return {
        "id": row["id"],
        "name": row["name"],
        "price": to_decimal(row["price_cents"]),
        "currency": row["currency"],
        "stock": None if available is None else int(available),
        "maxQuantity": row["max_quantity"],
        "opensAt": row["opens_at"] and iso(row["opens_at"]),
        "closesAt": row["closes_at"] and iso(row["closes_at"]),
        "serverTime": iso_ms(now_ms()),
        "createdAt": iso(row["created_at"]),
        "updatedAt": iso(row["updated_at"]),
    }
