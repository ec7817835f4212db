"""Products for buyers. Stock always comes from Redis; without Redis the answer is 503."""

import time
from typing import Any

import asyncpg
from aiohttp import web

from gateway.buying.catalogue import Catalogue, parse_product_id
from gateway.http.bodies import QUERY_TIMEOUT_S, answer, iso, iso_ms
from gateway.http.problems import Problem
from infra.postgres.pool import UNAVAILABLE
from infra.redis.client import RedisError
from sale.books.books import Books, ListedProduct, StockLevel
from sale.tables.queries import SQL
from schemas.clock import now_ms
from schemas.ids import ProductId
from schemas.money import to_decimal

ROWS_FOR_S = 1.0  # how long the rows of the list are cached, without stock


class Products:
    def __init__(self, catalogue: Catalogue, books: Books, pool: asyncpg.Pool) -> None:
        self._catalogue = catalogue
        self._books = books
        self._pool = pool
        self._rows: tuple[float, list[asyncpg.Record]] = (0.0, [])

    async def show(self, request: web.Request) -> web.Response:
        product = parse_product_id(request.match_info["id"])
        try:
            sale = await self._books.sale(product)
        except RedisError:
            raise Problem("unavailable") from None
        if sale is None:
            await self._catalogue.find(product)  # raises 404 or 503 unless only the books are missing
            raise Problem("stock_not_verified")
        return answer(_from_books(product, sale))

    async def show_all(self, _request: web.Request) -> web.Response:
        """All products; `stock` is null while the books of a product are not open."""
        rows = await self._listed()
        try:
            levels = await self._books.levels([ProductId(row["id"]) for row in rows])
        except RedisError:
            raise Problem("unavailable") from None
        return answer({"products": [_from_row(row, level) for row, level in zip(rows, levels, strict=True)]})

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


def _from_books(product: ProductId, sale: ListedProduct) -> dict[str, Any]:
    times = (sale.opens_at_ms, sale.closes_at_ms, sale.created_ms, sale.updated_ms)
    opens_at, closes_at, created_at, updated_at = (iso_ms(at) if at else None for at in times)
    return {
        "id": product,
        "name": sale.offer.name,
        "price": to_decimal(sale.offer.price_cents),
        "currency": sale.offer.currency,
        "stock": sale.available,
        "maxQuantity": sale.offer.max_quantity,
        "opensAt": opens_at,
        "closesAt": closes_at,
        "serverTime": iso_ms(now_ms()),
        "createdAt": created_at,
        "updatedAt": updated_at,
    }


def _from_row(row: asyncpg.Record, level: StockLevel | None) -> dict[str, Any]:
    return {
        "id": row["id"],
        "name": row["name"],
        "price": to_decimal(row["price_cents"]),
        "currency": row["currency"],
        "stock": None if level is None else level.available,
        "maxQuantity": row["max_quantity"],
        "opensAt": row["opens_at"] and iso(row["opens_at"]),
        "closesAt": row["closes_at"] and iso(row["closes_at"]),
        "serverTime": iso_ms(now_ms()),
        "createdAt": iso(row["created_at"]),
        "updatedAt": iso(row["updated_at"]),
    }
