"""The immutable data of products, cached per worker: name, price, currency and largest order. Stock is never cached.

Redis is read first, and Postgres only if Redis has no such product. Only Postgres decides that there is none.
"""

from dataclasses import dataclass

import asyncpg
import orjson
from cachetools import FIFOCache, TTLCache

from gateway.http.bodies import QUERY_TIMEOUT_S
from gateway.http.problems import Problem
from infra.postgres.pool import UNAVAILABLE
from infra.redis.client import RedisError
from sale.books.books import Books
from sale.tables.queries import SQL
from schemas.ids import ProductId
from schemas.limits import DEFAULT_MAX_QUANTITY
from schemas.money import MOST_CENTS, to_decimal

REMEMBERED = 10_000
UNKNOWN_FOR_S = 1.0  # protects Postgres from repeated requests for unknown ids; Redis is still read first
LARGEST_ID = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Product:
    """`accepted`: the parts of the 202's body around the order id, which occurs in it twice."""

    id: ProductId
    name: str
    price_cents: int
    currency: str
    max_quantity: int
    accepted: tuple[bytes, bytes, bytes]

    @property
    def public(self) -> dict[str, object]:
        return {"id": self.id, "name": self.name, "price": to_decimal(self.price_cents)}


def make_product(
    product: ProductId, name: str, price_cents: int, currency: str, max_quantity: int = DEFAULT_MAX_QUANTITY
) -> Product:
    body = orjson.dumps(
        {
            "success": True,
            "orderId": "\ue000",
            "status": "queued",
            "message": "Order queued for processing",
            "checkStatusUrl": "/order/\ue000/status",
            "product": {"id": product, "name": name.replace("\ue000", ""), "price": to_decimal(price_cents)},
        }
    )
    before, between, after = body.split("\ue000".encode())
    payable = MOST_CENTS // max(1, price_cents)  # units with a valid total: more are refused before the reservation
    return Product(product, name, price_cents, currency, min(max_quantity, payable), (before, between, after))


class Catalogue:
    """Products by id. Cheap enough for every request: a cached product costs one dictionary lookup."""

    def __init__(self, books: Books, pool: asyncpg.Pool) -> None:
        self._books = books
        self._pool = pool
        self._known: FIFOCache[ProductId, Product] = FIFOCache(REMEMBERED)
        self._unknown: TTLCache[ProductId, bool] = TTLCache(REMEMBERED, UNKNOWN_FOR_S)

    def cached(self, product: ProductId) -> Product | None:
        return self._known.get(product)

    async def find(self, product: ProductId) -> Product:
        """Raises Problem 404 if Postgres has no such product, 503 if no store answered."""
        found = self._known.get(product) or await self._from_books(product) or await self._from_postgres(product)
        self._known[product] = found
        return found

    async def _from_books(self, product: ProductId) -> Product | None:
        try:
            offer = await self._books.offer(product)
        except RedisError:
            return None
        if offer is None:
            return None
        return make_product(product, offer.name, offer.price_cents, offer.currency, offer.max_quantity)

    async def _from_postgres(self, product: ProductId) -> Product:
        if product in self._unknown:
            raise Problem("not_found")
        try:
            row = await self._pool.fetchrow(SQL.product, product, timeout=QUERY_TIMEOUT_S)
        except UNAVAILABLE:
            raise Problem("unavailable") from None
        if row is None:
            self._unknown[product] = True
            raise Problem("not_found")
        return make_product(product, row["name"], row["price_cents"], row["currency"], row["max_quantity"])


def parse_product_id(text: str) -> ProductId:
    """Raises Problem 404 if it cannot be the id of a product."""
    if text.isascii() and text.isdecimal() and len(text) <= 10 and 1 <= int(text) <= LARGEST_ID and text[0] != "0":
        return ProductId(int(text))
    raise Problem("not_found")
