"""An operator's wish for a sale in; the row, its audit trail and the books in Redis changed out.

Postgres first, in one transaction with the trail; then Redis, by `sale.lua`, which takes the newest action only. A rebuild
writes the same row into its books, so a paused sale stays paused whatever becomes of Redis. Every action may be repeated.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

import asyncpg

from infra.text import is_plain
from sale.books.inventory import Inventory
from sale.books.rebuild.rebuild import rebuild, sale_arguments
from sale.operations.operations import OperationRefused, Stores
from sale.tables.queries import SQL
from schemas.events import StockOpened
from schemas.ids import ProductId
from schemas.limits import LONGEST_WHY

LARGEST_STOCK = 2**31 - 1
TRAIL = 100  # actions shown, newest first


class Action(StrEnum):
    """`close` is for good; `restock` adds units."""

    PAUSE = "pause"
    RESUME = "resume"
    CLOSE = "close"
    RESTOCK = "restock"


class UnknownProduct(OperationRefused):
    """There is no such product."""


class SaleOver(OperationRefused):
    """The sale has ended: it can be neither paused nor resumed."""


class KeyReused(OperationRefused):
    """The key was used for another wish."""


@dataclass(frozen=True, slots=True)
class SaleCommand:
    """Who wants what, and why. `key_hash`: a wish of the same person and key is granted once, and the key serves no other."""

    action: Action
    who: str
    why: str
    units: int | None = None
    key_hash: str | None = None


@dataclass(frozen=True, slots=True)
class TrailEntry:
    """One line of the audit trail."""

    id: int
    action: str
    units: int | None
    who: str
    why: str
    at: datetime


@dataclass(frozen=True, slots=True)
class SaleStatus:
    """A sale as its row says. `state` is over, paused, scheduled or open."""

    product_id: ProductId
    state: str
    initial: int
    trail: list[TrailEntry]
    in_force: bool = True  # False: the books are closed; the rebuild that opens them applies it
    replayed: bool = False  # the key's wish was granted before; nothing was changed now


async def control(to: Stores, product: ProductId, wish: SaleCommand) -> SaleStatus:
    """Grant the wish, if it is not granted already. Raises OperationRefused, or what the stores raise.

    After an error of Redis or Kafka the wish is recorded: repeat it (restock: `stock rebuild`) to put it in force.
    """
    check(wish)
    async with to.pool.acquire() as connection, connection.transaction():
        replayed = await _record(connection, product, wish)
    if wish.action is Action.RESTOCK:
        await _rebuilt(to, product, wish)
        in_force = True
    else:
        in_force = await Inventory(to.redis).control(sale_arguments(await to.pool.fetchrow(SQL.product, product)))
    return replace(await sale(to.pool, product), in_force=in_force, replayed=replayed)


async def sale(pool: asyncpg.Pool, product: ProductId) -> SaleStatus:
    """Raises UnknownProduct."""
    row = await pool.fetchrow(SQL.product, product)
    if row is None:
        raise UnknownProduct(f"there is no product {product}")
    trail = [TrailEntry(**dict(entry)) for entry in await pool.fetch(SQL.sale_actions, product, TRAIL)]
    return SaleStatus(product, _state(row), row["initial"], trail)


def check(wish: SaleCommand) -> None:
    """Raises OperationRefused for a wish that makes no sense, whatever the sale."""
    if not is_plain(wish.why, LONGEST_WHY):
        raise OperationRefused(f"why: 1 to {LONGEST_WHY} printable characters")
    if wish.action is Action.RESTOCK and (wish.units is None or not 1 <= wish.units <= LARGEST_STOCK):
        raise OperationRefused("restock needs the units to add, at least 1")
    if wish.action is not Action.RESTOCK and wish.units is not None:
        raise OperationRefused(f"{wish.action} takes no units")


async def _record(connection: asyncpg.pool.PoolConnectionProxy, product: ProductId, wish: SaleCommand) -> bool:
    """Whether the wish's key was granted before. The key comes first: a repeat is one also after the sale is over."""
    row = await connection.fetchrow(SQL.sale_for_change, product)
    if row is None:
        raise UnknownProduct(f"there is no product {product}")
    if wish.key_hash is not None and not await _claim_key(connection, product, wish):
        return True
    _check_sale(product, row, wish)
    if not _already_done(row, wish.action):
        action_id = await connection.fetchval(
            SQL.add_sale_action, product, wish.action, wish.units, wish.who, wish.why.strip()
        )
        await connection.execute(SQL.apply_sale_action, product, wish.action, action_id, wish.units)
    return False


async def _claim_key(connection: asyncpg.pool.PoolConnectionProxy, product: ProductId, wish: SaleCommand) -> bool:
    """False where this very wish has the key already. Raises KeyReused where another one has it."""
    asked = (product, wish.action, wish.units, wish.why.strip())
    if await connection.fetchval(SQL.claim_sale_key, wish.who, wish.key_hash, *asked) is not None:
        return True
    known = await connection.fetchrow(SQL.wish_of_sale_key, wish.who, wish.key_hash)
    if known is None or tuple(known) != asked:
        raise KeyReused("this key was used for another action, product, number of units or reason")
    return False


def _check_sale(product: ProductId, row: asyncpg.Record, wish: SaleCommand) -> None:
    """Raises OperationRefused for a wish that this sale cannot grant."""
    match wish.action:
        case Action.PAUSE | Action.RESUME if row["over"]:
            raise SaleOver(f"the sale of product {product} is over")
        case Action.RESTOCK if row["initial"] + (wish.units or 0) > LARGEST_STOCK:
            raise OperationRefused(
                f"a product has at most {LARGEST_STOCK} units; product {product} has {row['initial']}"
            )


def _already_done(row: asyncpg.Record, action: Action) -> bool:
    """Whether the sale is what the action would make it. A restock always adds."""
    match action:
        case Action.PAUSE:
            return bool(row["sale_state"] == "paused")
        case Action.RESUME:
            return bool(row["sale_state"] == "open")
        case Action.CLOSE:
            return bool(row["over"])
        case Action.RESTOCK:
            return False


async def _rebuilt(to: Stores, product: ProductId, wish: SaleCommand) -> StockOpened:
    """Stock is loaded by a rebuild only."""
    reason = f"restock by {wish.units}: {wish.why.strip()}"
    return await rebuild(product, reason, redis=to.redis, pool=to.pool, settings=to.settings, publisher=to.publisher)


def _state(row: asyncpg.Record) -> str:
    now = row["read_at"]
    if row["closes_at"] and row["closes_at"] <= now:
        return "over"
    if row["sale_state"] == "paused":
        return "paused"
    return "scheduled" if row["opens_at"] and row["opens_at"] > now else "open"


def describe(sale: SaleStatus) -> str:
    """For people: the state, and the trail newest first."""
    head = f"product {sale.product_id}: {sale.state}, {sale.initial} units in all"
    if not sale.in_force:
        head += "; its books are being rebuilt, which puts this in force"
    return "\n".join([head, *map(_line, sale.trail)])


def _line(entry: TrailEntry) -> str:
    what = entry.action if entry.units is None else f"{entry.action} {entry.units}"
    return f"  {entry.at:%Y-%m-%d %H:%M:%S}  {what:<14} {entry.who:<16} {entry.why}"
