"""Controls a sale: pause, resume, close, restock. Every action can be repeated.

It first changes Postgres, in one transaction with the audit trail, and then Redis with `sale.lua`, which accepts only the
newest action. A rebuild copies the row into the books, so a paused sale stays paused even if Redis loses its data.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

import asyncpg

from infra.text import is_plain
from sale.books.inventory import Inventory
from sale.books.rebuild.fields import sale_arguments
from sale.books.rebuild.rebuild import rebuild
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
    """The key was used for another command."""


@dataclass(frozen=True, slots=True)
class SaleCommand:
    """An action with its operator and reason. With a `key_hash` it is done once per operator and key."""

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
    """A sale according to its row. `state` is over, paused, scheduled or open."""

    product_id: ProductId
    state: str
    initial: int
    trail: list[TrailEntry]
    in_force: bool = True  # False: the books are closed, and the rebuild that opens them applies it
    replayed: bool = False  # the key was used before for this command; nothing was changed


async def control(to: Stores, product: ProductId, command: SaleCommand) -> SaleStatus:
    """Carries out the command, unless it is done already. Raises OperationRefused, or what the stores raise.

    After an error of Redis or Kafka the command is on record: repeat it (after a restock: `stock rebuild`) to apply it.
    """
    check(command)
    async with to.pool.acquire() as connection, connection.transaction():
        replayed = await _record(connection, product, command)
    if command.action is Action.RESTOCK:
        await _rebuilt(to, product, command)
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


def check(command: SaleCommand) -> None:
    """Raises OperationRefused for a command that is invalid for every sale."""
    if not is_plain(command.why, LONGEST_WHY):
        raise OperationRefused(f"why: 1 to {LONGEST_WHY} printable characters")
    if command.action is Action.RESTOCK and (command.units is None or not 1 <= command.units <= LARGEST_STOCK):
        raise OperationRefused("restock needs the units to add, at least 1")
    if command.action is not Action.RESTOCK and command.units is not None:
        raise OperationRefused(f"{command.action} takes no units")


async def _record(connection: asyncpg.pool.PoolConnectionProxy, product: ProductId, command: SaleCommand) -> bool:
    """Whether the key was used before for this command. It checks the key first: a repetition counts even after the sale."""
    row = await connection.fetchrow(SQL.sale_for_change, product)
    if row is None:
        raise UnknownProduct(f"there is no product {product}")
    if command.key_hash is not None and not await _claim_key(connection, product, command):
        return True
    _check_sale(product, row, command)
    if not _already_done(row, command.action):
        action_id = await connection.fetchval(
            SQL.add_sale_action, product, command.action, command.units, command.who, command.why.strip()
        )
        await connection.execute(SQL.apply_sale_action, product, command.action, action_id, command.units)
    return False


async def _claim_key(connection: asyncpg.pool.PoolConnectionProxy, product: ProductId, command: SaleCommand) -> bool:
    """False if this command has the key already. Raises KeyReused if another command has it."""
    asked = (product, command.action, command.units, command.why.strip())
    if await connection.fetchval(SQL.claim_sale_key, command.who, command.key_hash, *asked) is not None:
        return True
    known = await connection.fetchrow(SQL.command_of_sale_key, command.who, command.key_hash)
    if known is None or tuple(known) != asked:
        raise KeyReused("this key was used for another action, product, number of units or reason")
    return False


def _check_sale(product: ProductId, row: asyncpg.Record, command: SaleCommand) -> None:
    """Raises OperationRefused for a command that this sale does not allow."""
    match command.action:
        case Action.PAUSE | Action.RESUME if row["over"]:
            raise SaleOver(f"the sale of product {product} is over")
        case Action.RESTOCK if row["initial"] + (command.units or 0) > LARGEST_STOCK:
            raise OperationRefused(
                f"a product has at most {LARGEST_STOCK} units; product {product} has {row['initial']}"
            )


def _already_done(row: asyncpg.Record, action: Action) -> bool:
    """Whether the sale is already in the state that the action leads to. A restock always adds units."""
    match action:
        case Action.PAUSE:
            return bool(row["sale_state"] == "paused")
        case Action.RESUME:
            return bool(row["sale_state"] == "open")
        case Action.CLOSE:
            return bool(row["over"])
        case Action.RESTOCK:
            return False


async def _rebuilt(to: Stores, product: ProductId, command: SaleCommand) -> StockOpened:
    """Only a rebuild loads stock."""
    reason = f"restock by {command.units}: {command.why.strip()}"
    return await rebuild(product, reason, redis=to.redis, pool=to.pool, settings=to.settings, publisher=to.publisher)


def _state(row: asyncpg.Record) -> str:
    now = row["read_at"]
    if row["closes_at"] and row["closes_at"] <= now:
        return "over"
    if row["sale_state"] == "paused":
        return "paused"
    return "scheduled" if row["opens_at"] and row["opens_at"] > now else "open"


def describe(sale: SaleStatus) -> str:
    """The state and the trail, newest first, as text."""
    head = f"product {sale.product_id}: {sale.state}, {sale.initial} units in all"
    if not sale.in_force:
        head += "; its books are being rebuilt, which puts this in force"
    return "\n".join([head, *map(_line, sale.trail)])


def _line(entry: TrailEntry) -> str:
    what = entry.action if entry.units is None else f"{entry.action} {entry.units}"
    return f"  {entry.at:%Y-%m-%d %H:%M:%S}  {what:<14} {entry.who:<16} {entry.why}"
