"""What operators do: deploy, create products, manage operators, settle by hand, make bulk tokens.

Every operation can be repeated: it detects what is done already and never does it twice.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

import asyncpg
import bcrypt

from infra.errors import CommandFailed
from infra.kafka.publisher import Publisher
from infra.postgres.pool import connect_postgres
from infra.redis.client import Redis, connect_redis
from infra.settings import Settings, SigningSettings
from sale.accounts.credentials import clean_email, clean_name, known_email, password_spellings
from sale.accounts.tokens import sign_all
from sale.books.inventory import Inventory
from sale.books.rebuild.rebuild import rebuild
from sale.orders import read_rows
from sale.payments.provider import ASKED_FOR, ATTEMPT_TIMEOUT_S
from sale.settlement import IN_HAND_AFTER_S, SettlementDesk, Verdict
from sale.tables.queries import SQL
from schemas.events import StockOpened
from schemas.ids import OrderId, ProductId
from schemas.limits import DEFAULT_MAX_QUANTITY
from schemas.money import to_decimal
from schemas.order_state import TERMINAL, Status

USERS_PER_STATEMENT = 20_000  # well inside the statement timeout
SETTLE_TIMEOUT_S = 30.0
LAST_ATTEMPT_S = (
    IN_HAND_AFTER_S + ATTEMPT_TIMEOUT_S + 1.0
)  # an attempt that began on a row read just before has ended by then
SettledAs = Literal[Status.CONFIRMED, Status.PAYMENT_FAILED]
NO_LOGIN = "!"  # in place of the hash; no bcrypt hash equals it


class OperationRefused(CommandFailed):
    """The operation is not possible; the text says why. Nothing was changed."""


@dataclass(frozen=True, slots=True)
class NewProduct:
    """A product as an operator describes it."""

    id: ProductId
    name: str
    price_cents: int
    stock: int
    currency: str = "USD"
    per_user_limit: int | None = None
    max_quantity: int = DEFAULT_MAX_QUANTITY
    opens_at: datetime | None = None
    closes_at: datetime | None = None

    @property
    def largest_order(self) -> int:
        """Units."""
        return min(self.max_quantity, self.per_user_limit or self.max_quantity)


REFERENCE_PRODUCT = NewProduct(ProductId(1), "iPhone 15 Pro - Flash Sale", 99_999, 1_000)


@dataclass(slots=True)
class Stores:
    """Connections to the three stores for one command."""

    settings: Settings
    redis: Redis
    pool: asyncpg.Pool
    publisher: Publisher = field(repr=False)


@asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[Stores]:
    """Connects to Redis, Postgres and Kafka; at the end waits for outstanding acknowledgements and closes."""
    redis = connect_redis(settings, timeout_s=5.0)
    pool = await connect_postgres(settings)
    publisher = await Publisher.start(settings)
    try:
        yield Stores(settings, redis, pool, publisher)
    finally:
        await publisher.stop()
        await pool.close()
        await redis.aclose()


async def deploy(to: Stores) -> StockOpened | None:
    """Puts the reference product on sale. Returns None if it exists: its stock is never loaded again.

    Migrations and topics come first (sale/operations/provision.py).
    """
    await _insert(to.pool, REFERENCE_PRODUCT)
    row = await to.pool.fetchrow(SQL.product, REFERENCE_PRODUCT.id)
    assert row is not None
    # Without verified books it is new, or an earlier deploy ended between the row and its stock.
    return await open_stock(to, REFERENCE_PRODUCT.id, "deploy") if row["verified_at"] is None else None


async def create_product(to: Stores, product: NewProduct) -> StockOpened:
    """Creates a product, buyable when this returns. Raises OperationRefused if the id is taken."""
    if not await _insert(to.pool, product):
        raise OperationRefused(f"product {product.id} exists")
    return await open_stock(to, product.id, "product created")


async def open_stock(to: Stores, product: ProductId, reason: str) -> StockOpened:
    """Rebuilds a product's books from Postgres, the log and Redis. Raises OperationRefused for an unknown product."""
    if await to.pool.fetchrow(SQL.product, product) is None:
        raise OperationRefused(f"there is no product {product}")
    return await rebuild(product, reason, redis=to.redis, pool=to.pool, settings=to.settings, publisher=to.publisher)


async def _insert(pool: asyncpg.Pool, product: NewProduct) -> bool:
    created = await pool.fetchval(
        SQL.create_product,
        product.id,
        product.name,
        product.price_cents,
        product.currency,
        product.stock,
        product.opens_at,
        product.closes_at,
        product.per_user_limit,
        product.max_quantity,
    )
    return created is not None


async def settle(to: Stores, order_id: OrderId, outcome: SettledAs, why: str, *, early: bool = False) -> Status:
    """Settles an order whose payment is unknown with the operator's outcome; returns its status.

    It first takes the order from the reconciler and waits until any attempt under way has ended. Then it settles on the
    reconciler's path, with the operator's words as the reason. If the order has this outcome already, it is announced again.
    Raises OperationRefused if the order is unknown, has the other outcome, is still being charged, or (unless `early`) if
    the reconciler still asks about it.
    """
    if await _refuse_other_end(to.pool, order_id, outcome) is not outcome:
        await _take_in_hand(to.pool, order_id, early=early)
        await _refuse_other_end(to.pool, order_id, outcome)  # the provider's answer may have come meanwhile
    desk = SettlementDesk(to.pool, Inventory(to.redis), to.publisher)
    async with asyncio.timeout(SETTLE_TIMEOUT_S):
        await desk.settle([Verdict(order_id, outcome, reason=f"operator: {why}")])
    return await _refuse_other_end(to.pool, order_id, outcome)


async def _take_in_hand(pool: asyncpg.Pool, order_id: OrderId, *, early: bool) -> None:
    """Returns when no other process can still be asking the provider about it."""
    if await pool.fetchval(SQL.take_in_hand, order_id, ASKED_FOR, early) is None:
        row = (await read_rows(pool, [order_id]))[order_id]
        if row.status in TERMINAL:
            return
        if row.status is not Status.NEEDS_RECONCILIATION:
            raise OperationRefused(
                f"order {order_id} is {row.status}: its payment is under way, only an unknown one is settled by hand"
            )
        until = row.created_at + ASKED_FOR
        raise OperationRefused(
            f"order {order_id} is asked about until {until:%Y-%m-%d %H:%M} UTC, and the provider's answer ends it;"
            " --early settles it before"
        )
    await asyncio.sleep(LAST_ATTEMPT_S)


async def _refuse_other_end(pool: asyncpg.Pool, order_id: OrderId, outcome: SettledAs) -> Status:
    row = (await read_rows(pool, [order_id])).get(order_id)
    if row is None:
        raise OperationRefused(f"there is no order {order_id}")
    if row.status in TERMINAL and row.status is not outcome:
        raise OperationRefused(f"order {order_id} is {row.status} already")
    return row.status


async def create_operator(to: Stores, name: str, email: str, password: str) -> int:
    """Creates a user with the operator's role. Raises OperationRefused for a taken email and for an invalid name, email or password."""
    try:
        name, email, secret = clean_name(name), clean_email(email), password_spellings(password)[0]
    except ValueError as error:
        raise OperationRefused(str(error).rstrip(".")) from None
    hashed = bcrypt.hashpw(secret, bcrypt.gensalt(to.settings.bcrypt_cost)).decode()
    user_id = await to.pool.fetchval(SQL.create_user, name, email, hashed, "operator")
    if user_id is None:
        raise OperationRefused(f"{email} is taken")
    return int(user_id)


async def demote_operator(to: Stores, email: str) -> int:
    """Makes an operator an ordinary user, from the next request on. Raises OperationRefused if there is no such operator."""
    try:
        user_id = await to.pool.fetchval(SQL.demote_operator, known_email(email))
    except ValueError as error:
        raise OperationRefused(str(error).rstrip(".")) from None
    if user_id is None:
        raise OperationRefused(f"there is no operator {email}")
    return int(user_id)


def require_development(settings: Settings) -> None:
    """Raises OperationRefused outside the development profile."""
    if not settings.development:
        raise OperationRefused("bulk users exist in the development profile only (THRONES_PROFILE=development)")


async def bulk_tokens(pool: asyncpg.Pool, users: int, settings: SigningSettings) -> list[str]:
    """Tokens of `users` fixed users; creates missing users. Raises OperationRefused outside development."""
    require_development(settings)
    ids: list[int] = []
    for first in range(1, users + 1, USERS_PER_STATEMENT):
        last = min(first + USERS_PER_STATEMENT - 1, users)
        await pool.execute(SQL.create_bulk_users, first, last, NO_LOGIN)
        ids += [row["id"] for row in await pool.fetch(SQL.bulk_user_ids, first, last)]
    return list(sign_all(ids, "user", settings))


def describe(opened: StockOpened, product: NewProduct | None = None) -> str:
    """One line of text about an opened product."""
    name = f' "{product.name}" at {to_decimal(product.price_cents)} {product.currency}' if product else ""
    return (
        f"product {opened.product_id}{name}: {opened.available} of {opened.initial} on sale{_terms(product)}, "
        f"{opened.held} held, {opened.sold} sold (epoch {opened.epoch})"
    )


def _terms(product: NewProduct | None) -> str:
    """The window and the limits that differ from the default."""
    if product is None:
        return ""
    opens = f" from {iso(product.opens_at)}" if product.opens_at else ""
    closes = f" until {iso(product.closes_at)}" if product.closes_at else ""
    limit = f", at most {product.per_user_limit} a user" if product.per_user_limit else ""
    size = f", at most {product.max_quantity} an order" if product.max_quantity != DEFAULT_MAX_QUANTITY else ""
    return f"{opens}{closes}{limit}{size}"


def created(opened: StockOpened, product: NewProduct) -> dict[str, object]:
    """The created product as plain values."""
    return {
        "product_id": product.id,
        "epoch": opened.epoch,
        "name": product.name,
        "price": to_decimal(product.price_cents),
        "currency": product.currency,
        "stock": product.stock,
        "per_user_limit": product.per_user_limit,
        "max_quantity": product.max_quantity,
        "opens_at": product.opens_at and iso(product.opens_at),
        "closes_at": product.closes_at and iso(product.closes_at),
    }


def iso(at: datetime) -> str:
    """UTC; without fractions if the time is a whole second."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")
