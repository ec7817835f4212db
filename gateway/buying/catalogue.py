"""What a product is: its immutable name, price, currency and largest order, remembered a worker; its stock is never kept here.

Redis is asked first, Postgres only when Redis does not know the product; only Postgres can say that there is none.
"""

import time
from dataclasses import dataclass

import asyncpg
import orjson

from gateway.http.problems import Problem
from infra.postgres.pool import UNAVAILABLE
from infra.redis.client import RedisError
from sale.books.books import Books
from sale.tables.queries import SQL
from schemas.ids import ProductId
from schemas.limits import DEFAULT_MAX_QUANTITY
from schemas.money import MOST_CENTS, to_decimal

REMEMBERED = 10_000
UNKNOWN_FOR_S = 1.0  # spares Postgres from being asked about the same nonsense; Redis is asked first all the same
LARGEST_ID = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Product:
    """`accepted` are the bytes of the 202 around the order id (which is in them twice)."""

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
    payable = MOST_CENTS // max(1, price_cents)  # units whose total is an amount: more is refused before it is reserved
    return Product(product, name, price_cents, currency, min(max_quantity, payable), (before, between, after))


class Catalogue:
    """Products by id. Safe to ask on every request: a known product costs one dictionary look-up."""

    def __init__(self, books: Books, pool: asyncpg.Pool) -> None:
        self._books = books
        self._pool = pool
        self._known: dict[ProductId, Product] = {}
        self._unknown: dict[ProductId, float] = {}

    def cached(self, product: ProductId) -> Product | None:
        return self._known.get(product)

    async def find(self, product: ProductId) -> Product:
        """Raises Problem 404 when Postgres says there is none, 503 when nobody could say."""
        found = self._known.get(product) or await self._from_books(product) or await self._from_postgres(product)
        if len(self._known) >= REMEMBERED:
            self._known.clear()
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
        if self._unknown.get(product, 0.0) > time.monotonic():
            raise Problem("not_found")
        try:
            row = await self._pool.fetchrow(SQL.product, product, timeout=2.0)
        except UNAVAILABLE:
            raise Problem("unavailable") from None
        if row is None:
            if len(self._unknown) >= REMEMBERED:
                self._unknown.clear()
            self._unknown[product] = time.monotonic() + UNKNOWN_FOR_S
            raise Problem("not_found")
        return make_product(product, row["name"], row["price_cents"], row["currency"], row["max_quantity"])


def parse_product_id(text: str) -> ProductId:
    """Raises Problem 404 for what cannot be a product's id."""
    if text.isascii() and text.isdecimal() and len(text) <= 10 and 1 <= int(text) <= LARGEST_ID and text[0] != "0":
        return ProductId(int(text))
    raise Problem("not_found")
