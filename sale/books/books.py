"""Reads the books of products in Redis: typed answers, one command per product; no other module knows key or field names.

Every method raises RedisError. A product without books is None.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from infra.redis.client import Redis
from infra.redis.trips import CommandSource
from sale.books import keys
from sale.books.entry import HeldEntry, parse
from sale.books.run import SECTION, run_of
from schemas.ids import OrderId, ProductId
from schemas.limits import DEFAULT_MAX_QUANTITY

CLOSED = b"closed"
UNITS = ("initial", "available", "held", "sold")
STANDING = ("run", "state", "epoch", "version", "opened_from")
OFFER = ("name", "price_cents", "currency", "max_quantity")
SALE = (*OFFER, "available", "opens_at_ms", "closes_at_ms", "created_ms", "updated_ms")


@dataclass(frozen=True, slots=True)
class StockLevel:
    """Units on sale, and the version of that value."""

    epoch: int
    version: int
    available: int


@dataclass(frozen=True, slots=True)
class StockUnits:
    """A product's units at one instant."""

    initial: int
    available: int
    held: int
    sold: int

    @property
    def balances(self) -> bool:
        """Invariant I1, which holds at every instant."""
        return self.initial == self.available + self.held + self.sold and min(self.available, self.held, self.sold) >= 0

    def __str__(self) -> str:
        return f"{self.initial} != {self.available} available + {self.held} held + {self.sold} sold"


@dataclass(frozen=True, slots=True)
class BooksStanding:
    """The run of Redis for which a product's books were made, and their progress. Without books all fields are empty."""

    run: str | None
    state: str | None
    epoch: int
    version: int
    opened_from: int  # the offset from which the log holds their opening

    @property
    def closed(self) -> bool:
        return self.state == CLOSED.decode()


@dataclass(frozen=True, slots=True)
class SaleProgress:
    """Each reservation and each settlement uses one version; `entries` are orders with outstanding effects."""

    version: int
    held: int  # units
    entries: int


@dataclass(frozen=True, slots=True)
class Offer:
    """The immutable data of a product."""

    name: str
    price_cents: int
    currency: str
    max_quantity: int  # units per order


@dataclass(frozen=True, slots=True)
class ListedProduct:
    """An offer with its stock and the opening and closing times of its sale (ms since the epoch)."""

    offer: Offer
    available: int
    opens_at_ms: int | None
    closes_at_ms: int | None
    created_ms: int | None
    updated_ms: int | None


@dataclass(frozen=True, slots=True)
class RedisBook:
    """A product in Redis, read at one instant. `in_force`: verified for the current run of Redis and not closed."""

    in_force: bool
    epoch: int
    version: int
    initial: int
    available: int
    held: int
    sold: int
    entries: Mapping[str, HeldEntry] = field(default_factory=dict)
    buyers: Mapping[int, int] = field(default_factory=dict)  # units by user

    @property
    def units(self) -> StockUnits:
        return StockUnits(self.initial, self.available, self.held, self.sold)


class Books:
    """Reads of books. A method that takes several products reads them all in one round trip."""

    def __init__(self, source: CommandSource) -> None:
        self._source = source

    async def levels(self, products: Sequence[ProductId]) -> list[StockLevel | None]:
        found = await self._stock(products, "epoch", "version", "available")
        return [None if None in level else StockLevel(*map(int, level)) for level in found]

    async def units(self, products: Sequence[ProductId]) -> list[StockUnits | None]:
        return [
            None if None in units else StockUnits(*map(int, units)) for units in await self._stock(products, *UNITS)
        ]

    async def standings(self, products: Sequence[ProductId]) -> list[BooksStanding]:
        return [
            BooksStanding(_text(run), _text(state), int(epoch or 0), int(version or 0), int(opened_from or 0))
            for run, state, epoch, version, opened_from in await self._stock(products, *STANDING)
        ]

    async def offer(self, product: ProductId) -> Offer | None:
        [found] = await self._stock([product], *OFFER)
        return _offer(found)

    async def sale(self, product: ProductId) -> ListedProduct | None:
        [found] = await self._stock([product], *SALE)
        offer, (available, *times) = _offer(found[: len(OFFER)]), found[len(OFFER) :]
        if offer is None or available is None:
            return None
        return ListedProduct(offer, int(available), *(int(at) if at else None for at in times))

    async def entries(self, product: ProductId) -> int:
        """The number of orders that have an entry, and so outstanding effects."""
        [count] = await self._source.replies([("HLEN", keys.held(product))])
        return int(count)

    async def progress(self, product: ProductId) -> SaleProgress:
        """Zeros without books."""
        (version, held), entries = await self._source.replies(
            [("HMGET", keys.stock(product), "version", "held"), ("HLEN", keys.held(product))]
        )
        return SaleProgress(int(version or 0), int(held or 0), int(entries))

    async def _stock(self, products: Sequence[ProductId], *fields: str) -> list[Any]:
        return await self._source.replies([("HMGET", keys.stock(product), *fields) for product in products])


async def read_book(redis: Redis, product: ProductId) -> RedisBook | None:
    """All books of one product at one instant, in a transaction."""
    async with redis.pipeline(transaction=True) as pipe:
        pipe.hgetall(keys.stock(product))
        pipe.hgetall(keys.held(product))
        pipe.hgetall(keys.buyers(product))
        pipe.info(SECTION)
        stock, held, buyers, replication = await pipe.execute()
    if b"initial" not in stock:
        return None
    epoch, version, initial, available, units_held, sold = (
        int(stock[name.encode()]) for name in ("epoch", "version", *UNITS)
    )
    return RedisBook(
        in_force=stock.get(b"run", b"").decode() == run_of(replication) and stock.get(b"state") != CLOSED,
        epoch=epoch,
        version=version,
        initial=initial,
        available=available,
        held=units_held,
        sold=sold,
        entries={order_id.decode(): parse(OrderId(order_id.decode()), line) for order_id, line in held.items()},
        buyers={int(user): int(units) for user, units in buyers.items()},
    )


def _offer(fields: Sequence[bytes | None]) -> Offer | None:
    name, price, currency, max_quantity = fields
    if name is None or price is None or currency is None:
        return None
    # Books opened by a release without a largest order have none; their row has the default.
    return Offer(name.decode(), int(price), currency.decode(), int(max_quantity or DEFAULT_MAX_QUANTITY))


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()
