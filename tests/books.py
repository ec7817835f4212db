"""A product's books in Redis for tests: written by the script that every rebuild ends with, read back as a whole."""

from dataclasses import dataclass
from typing import Any

from infra.redis.client import Redis
from sale.books import keys
from sale.books.entry import HeldEntry, parse
from sale.books.inventory import Held, Inventory, Known, Refused, Reservation
from sale.books.key_record import key_hash
from sale.books.run import present_run
from sale.books.scripts import SCRIPTS
from schemas.events import OrderStatusChanged
from schemas.ids import OrderId, ProductId, UserId, new_order_id
from schemas.order_state import Entry, Status

PRICE_CENTS = 99_999
NO_LIMIT = 1_000_000


async def open_books(
    redis: Redis,
    product: ProductId,
    initial: int,
    *,
    epoch: int = 1,
    held: int = 0,
    sold: int = 0,
    max_held: int = NO_LIMIT,
    **fields: int,
) -> bytes:
    """Put books in force for the present Redis run; returns open.lua's answer. `fields` go into the stock hash as they are."""
    run = await present_run(redis)
    names = [keys.stock(product), keys.held(product), keys.due(product), keys.buyers(product)]
    books = {
        "state": "open",
        "initial": initial,
        "available": initial - held - sold,
        "held": held,
        "sold": sold,
        "max_held": max_held,
        "price_cents": PRICE_CENTS,
        "currency": "USD",
        "name": "a thing",
        **fields,
    }
    flat: list[Any] = [part for pair in books.items() for part in pair]
    prepared = [keys.prepared(name, epoch) for name in names[1:]]
    answer = await redis.eval(SCRIPTS["open"], 7, *names, *prepared, run, epoch, *flat)
    assert isinstance(answer, bytes)
    return answer


def wish(
    product: ProductId,
    *,
    user: int = 1,
    quantity: int = 1,
    key: str | None = None,
    order_id: OrderId | None = None,
) -> Reservation:
    """What a gateway asks for; `key` is an Idempotency-Key."""
    return Reservation(
        order_id=order_id or new_order_id(),
        user_id=UserId(user),
        product_id=product,
        quantity=quantity,
        unit_price_cents=PRICE_CENTS,
        currency="USD",
        hashed_key=key_hash(key) if key is not None else None,
    )


async def hold(inventory: Inventory, asked: Reservation) -> Held:
    """Reserve where nothing speaks against it."""
    answer = await inventory.reserve(asked)
    assert isinstance(answer, Held), answer
    return answer


def code(answer: Held | Known | Refused) -> str:
    """One word for an answer: held, known, or the reason of the refusal."""
    match answer:
        case Held():
            return "held"
        case Known():
            return "known"
        case Refused(reason=reason):
            return reason


@dataclass(frozen=True, slots=True)
class Books:
    """Everything Redis knows of one product at one instant."""

    initial: int
    available: int
    held: int
    held_orders: int
    sold: int
    version: int
    epoch: int
    entries: dict[OrderId, HeldEntry]
    due: set[OrderId]
    buyers: dict[int, int]

    def check(self) -> None:
        """Promise 4 at every instant, and that the aggregates are what the entries say."""
        assert self.initial == self.available + self.held + self.sold
        assert min(self.available, self.held, self.sold) >= 0
        assert self.held == sum(e.quantity for e in self.entries.values() if e.state is Entry.HELD)
        assert self.held_orders == sum(e.quantity > 0 for e in self.entries.values() if e.state is Entry.HELD)
        assert self.due == set(self.entries)
        assert all(units > 0 for units in self.buyers.values())
        assert sum(self.buyers.values()) == self.held + self.sold


async def read_books(redis: Redis, product: ProductId) -> Books:
    async with redis.pipeline(transaction=True) as pipe:
        pipe.hgetall(keys.stock(product))
        pipe.hgetall(keys.held(product))
        pipe.zrange(keys.due(product), 0, -1)
        pipe.hgetall(keys.buyers(product))
        stock, held, due, buyers = await pipe.execute()
    entries = {OrderId(key.decode()): parse(OrderId(key.decode()), line) for key, line in held.items()}
    numbers = {name: int(stock[name.encode()]) for name in ("initial", "available", "held", "sold", "version", "epoch")}
    return Books(
        **numbers,
        held_orders=int(stock.get(b"held_orders", 0)),
        entries=entries,
        due={OrderId(id_.decode()) for id_ in due},
        buyers={int(user): int(units) for user, units in buyers.items()},
    )


async def read_model(redis: Redis, order_id: OrderId) -> dict[str, str]:
    found: Any = await redis.hgetall(keys.order(order_id))
    return {name.decode(): value.decode() for name, value in found.items()}


def announcement(asked: Reservation, status: Status, epoch: int, version: int, at_ms: int = 2) -> OrderStatusChanged:
    """The terminal order.status of a settlement."""
    return OrderStatusChanged(
        order_id=asked.order_id,
        product_id=asked.product_id,
        user_id=asked.user_id,
        quantity=asked.quantity,
        total_cents=asked.quantity * asked.unit_price_cents,
        currency=asked.currency,
        status=status,
        placed_at_ms=1,
        at_ms=at_ms,
        epoch=epoch,
        version=version,
        available=0,
        returned=0,
    )
