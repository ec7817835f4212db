"""Postgres in process: products and orders as dictionaries, our statements by their names, each of them atomic.

place_orders and settle_orders are written anew from their contracts in migrations/; test_postgres_model.py compares them
with the real ones. Rows are never changed in place, so a snapshot is a copy of the two tables.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import cycle
from typing import Any

import asyncpg

from sale.orders import REFUSED_BY_DATABASE
from sale.tables.queries import SQL
from schemas.limits import DEFAULT_MAX_QUANTITY

from .clock import as_datetime

Row = dict[str, Any]
UNPAID = ("awaiting_payment", "needs_reconciliation")
GIVEN_BACK = ("failed", "payment_failed")
NAMES = {text: name for name, text in vars(SQL).items()}
ONE_MINUTE = timedelta(minutes=1)
PASSING: tuple[Exception, ...] = (
    OSError("postgres is away"),
    asyncpg.ReadOnlySQLTransactionError("cannot execute INSERT in a read-only transaction"),
    asyncpg.TooManyConnectionsError("sorry, too many clients already"),
    asyncpg.CannotConnectNowError("the database system is starting up"),
    asyncpg.PostgresIOError("could not extend file: no space left on device"),
    asyncpg.InvalidPasswordError("password authentication failed"),
    asyncpg.SerializationError("could not serialize access"),
    asyncpg.UndefinedTableError("relation does not exist"),
    asyncpg.UnknownPostgresError("of a class that nobody has heard of"),
)
"""What an outage may look like. Taken in turn, without dice: a history does not depend on what exactly was answered."""


@dataclass
class PostgresModel:
    """One database. `on` is what connections read: this, or a snapshot of it."""

    clock_s: Callable[[], float]
    products: dict[int, Row] = field(default_factory=dict)
    orders: dict[str, Row] = field(default_factory=dict)
    locks: dict[tuple[int, ...], object] = field(default_factory=dict)  # advisory ones, and the session that holds each
    refused: set[str] = field(default_factory=set)  # orders that place_orders can never insert, whatever the reason
    actions: list[Row] = field(default_factory=list)  # of operators
    parked: dict[int, Row] = field(default_factory=dict)
    parkings: int = 0
    passing: Iterator[Exception] = field(default_factory=lambda: cycle(PASSING))  # the next answer in an outage

    def snapshot(self) -> "PostgresModel":
        return PostgresModel(self.clock_s, dict(self.products), dict(self.orders), parked=dict(self.parked))

    def run(self, statement: str, args: tuple[Any, ...]) -> list[Row]:
        if statement == "SELECT clock_timestamp()":
            return [{"clock_timestamp": self._now()}]
        method = getattr(self, f"_{NAMES[statement]}", None)
        if method is None:
            raise AssertionError(f"the model does not know {NAMES[statement]}")
        rows: list[Row] = method(*args)
        return rows

    def create_product(
        self,
        product: int,
        initial: int,
        price_cents: int,
        limit: int | None,
        opens_at: datetime | None = None,
        closes_at: datetime | None = None,
    ) -> None:
        now = self._now() - ONE_MINUTE  # so nobody waits for its creator to open it
        self.products[product] = {
            "id": product, "name": f"Product {product}", "price_cents": price_cents, "currency": "USD",
            "initial": initial, "taken": 0, "epoch": 0, "verified_at": None, "opens_at": opens_at, "closes_at": closes_at,
            "per_user_limit": limit, "max_quantity": DEFAULT_MAX_QUANTITY, "sale_state": "open", "sale_action": 0, "log_lost": False,
            "created_at": now, "updated_at": now,
        }  # fmt: skip

    def _now(self) -> datetime:
        return as_datetime(self.clock_s())

    def _take(self, product: int, units: int) -> None:
        row = self.products[product]
        if not 0 <= row["taken"] + units <= row["initial"]:
            raise asyncpg.CheckViolationError("never_oversold")
        self.products[product] = row | {"taken": row["taken"] + units, "updated_at": self._now()}

    def _insert(self, product: int, fields: Row) -> None:
        now = self._now()
        self.orders[fields["id"]] = {
            "charge_id": None, "charge_started_at_ms": None, "charge_answered_at_ms": None, "created_at": now,
            "updated_at": now, "product_id": product, "unit_price_cents": self.products[product]["price_cents"],
            "currency": self.products[product]["currency"], "key_lost": False,
        } | fields  # fmt: skip

    def _place_orders(self, *columns: list[Any]) -> list[Row]:
        names = ("id", "product", "user_id", "quantity", "epoch", "version", "available", "placed_at_ms", "key_hash")
        wishes = [dict(zip((*names, "vouched"), values, strict=True)) for values in zip(*columns, strict=True)]
        known = self.orders.keys() & {wish["id"] for wish in wishes}
        if self.refused & {wish["id"] for wish in wishes} - known:
            raise asyncpg.DataError("a value that no column takes")
        new: set[str] = set()
        for wish in sorted(wishes, key=lambda w: (w["product"], w["epoch"], w["version"], w["id"])):
            product = self.products.get(wish["product"])
            if wish["id"] in self.orders or product is None:
                continue
            if wish["epoch"] < product["epoch"] and not wish["vouched"]:
                continue
            fits = product["taken"] + wish["quantity"] <= product["initial"]
            fields = {name: wish[name] for name in names if name != "product"}
            fields |= {
                "status": "awaiting_payment" if fits else "failed",
                "reason": None if fits else REFUSED_BY_DATABASE,
            }
            self._insert(wish["product"], fields)
            if fits:
                self._take(wish["product"], wish["quantity"])
            new.add(wish["id"])
        return [self._placed(wish, new, known) for wish in {wish["id"]: wish for wish in wishes}.values()]

    def _placed(self, wish: Row, new: set[str], known: set[str]) -> Row:
        row = self.orders.get(wish["id"], {})
        if wish["id"] in new:
            outcome = "new"
        elif wish["id"] in known:
            outcome = "known"
        else:
            outcome = "stale" if wish["product"] in self.products else "no_product"
        terms = {name: row.get(name) for name in ("status", "unit_price_cents", "currency")}
        return {"order_id": wish["id"], "outcome": outcome} | terms

    def _settle_orders(self, *columns: list[Any]) -> list[Row]:
        for order_id, status, reason, charge_id, started, answered in zip(*columns, strict=True):
            row = self.orders.get(order_id)
            if row is None or row["status"] not in UNPAID or row["status"] == status:
                continue
            self.orders[order_id] = row | {
                "status": str(status), "reason": reason, "charge_id": charge_id, "updated_at": self._now(),
                "charge_started_at_ms": row["charge_started_at_ms"] or started, "charge_answered_at_ms": answered,
            }  # fmt: skip
            if status in GIVEN_BACK:
                self._take(row["product_id"], -row["quantity"])
        return self._orders_by_id(columns[0])

    def _fail_order(self, order_id: str, product: int, user: int, quantity: int, reason: str, *rest: Any) -> list[Row]:
        epoch, version, available, key_hash, placed_at_ms, key_lost = rest
        if order_id not in self.orders:
            self._insert(product, {
                "id": order_id, "user_id": user, "quantity": quantity, "status": "failed", "reason": reason,
                "epoch": epoch, "version": version, "available": available, "key_hash": key_hash,
                "placed_at_ms": placed_at_ms, "key_lost": key_lost,
            })  # fmt: skip
        return []

    def _orders_by_id(self, ids: list[str]) -> list[Row]:
        return [self._as_selected(self.orders[id_]) for id_ in dict.fromkeys(ids) if id_ in self.orders]

    def _unsettled_payments(self, asked_for: timedelta, limit: int) -> list[Row]:
        since = self._now() - asked_for
        left_to_us = self._now() - timedelta(minutes=10)
        rows = [
            r
            for r in self.orders.values()
            if r["status"] == "needs_reconciliation"
            and r["created_at"] > since
            and r.get("by_hand_since", left_to_us - timedelta(seconds=1)) < left_to_us
        ]
        return [self._as_selected(row) for row in sorted(rows, key=lambda row: row["updated_at"])[:limit]]

    def _take_in_hand(self, order_id: str, asked_for: timedelta, early: bool) -> list[Row]:
        row = self.orders.get(order_id)
        old = row is not None and (early or row["created_at"] <= self._now() - asked_for)
        if row is None or row["status"] != "needs_reconciliation" or not old:
            return []
        row["by_hand_since"] = self._now()
        return [{"id": order_id}]

    def _expired_payments(self, asked_for: timedelta) -> list[Row]:
        since = self._now() - asked_for
        expired = [
            r for r in self.orders.values() if r["status"] == "needs_reconciliation" and r["created_at"] <= since
        ]
        return [{"count": len(expired)}]

    def _product(self, product: int) -> list[Row]:
        return [row for row in self._products() if row["id"] == product]

    def _products(self) -> list[Row]:
        return [row | {"read_at": self._now()} for row in self.products.values()]

    def _draw_epoch(self, product: int) -> list[Row]:
        self.products[product] = self.products[product] | {"epoch": self.products[product]["epoch"] + 1}
        return [{name: self.products[product][name] for name in ("epoch", "log_lost")}]

    def _note_lost_log(self, product: int) -> list[Row]:
        self.products[product] = self.products[product] | {"log_lost": True}
        return []

    def _lost_log_is_told(self, product: int, epoch: int) -> list[Row]:
        if self.products[product]["epoch"] == epoch:
            self.products[product] = self.products[product] | {"log_lost": False}
        return []

    def _mark_verified(self, product: int, at: datetime) -> list[Row]:
        if at <= self._now():
            self.products[product] = self.products[product] | {"verified_at": at}
        return []

    def _park_orders(self, product: int, records: list[bytes]) -> list[Row]:
        for record in records:
            self.parkings += 1
            self.parked[self.parkings] = {"id": self.parkings, "product_id": product, "record": record}
        return []

    def _parked_orders(self, product: int) -> list[Row]:
        return [row for row in self.parked.values() if row["product_id"] == product]

    def _parked_to_send(self, products: list[int], limit: int) -> list[Row]:
        return [row for product in products for row in self._parked_orders(product)[:limit]]

    def _unpark_orders(self, ids: list[int]) -> list[Row]:
        for id_ in ids:
            self.parked.pop(id_, None)
        return []

    def _earliest_end(self, ids: list[str]) -> list[Row]:
        rows = [self.orders[id_] for id_ in ids if id_ in self.orders]
        return [{"min": min((row["updated_at"] for row in rows if row["status"] not in UNPAID), default=None)}]

    def _ended_since(self, product: int, since: datetime) -> list[Row]:
        since = since if since <= self._now() else self._now() - 5 * ONE_MINUTE
        return [row for row in self._of(product) if row["status"] not in UNPAID and row["updated_at"] > since]

    def _rebuild_rows(self, product: int) -> list[Row]:
        verified = self.products[product]["verified_at"]
        every = verified is None or verified > self._now()
        return [
            row
            for row in self._of(product)
            if every or row["status"] in UNPAID or row["updated_at"] > verified - ONE_MINUTE
        ]

    def _rebuild_rows_by_id(self, ids: list[str]) -> list[Row]:
        return [self.orders[id_] for id_ in ids if id_ in self.orders]

    def _rebuild_keys(self, product: int, oldest_ms: int) -> list[Row]:
        rows = [row for row in self._of(product) if row["placed_at_ms"] > oldest_ms]
        return [row for row in rows if row["key_hash"] and not row["key_lost"]]

    def _orders_of_keys(self, users: list[int], hashes: list[str], oldest_ms: int) -> list[Row]:
        wanted = set(zip(users, hashes, strict=True))
        return [
            row
            for row in self.orders.values()
            if (row["user_id"], row["key_hash"]) in wanted and not row["key_lost"] and row["placed_at_ms"] > oldest_ms
        ]

    def _units_by_user(self, product: int) -> list[Row]:
        units: Counter[int] = Counter()
        for row in self._of(product):
            if row["status"] not in GIVEN_BACK:
                units[row["user_id"]] += row["quantity"]
        return [{"user_id": user, "units": count} for user, count in units.items()]

    def _units_by_status(self, product: int) -> list[Row]:
        units: Counter[str] = Counter()
        for row in self._of(product):
            units[row["status"]] += row["quantity"]
        return [{"status": status, "units": count} for status, count in units.items()]

    def _sale_for_change(self, product: int) -> list[Row]:
        row = self.products[product]
        return [{name: row[name] for name in ("sale_state", "initial")} | {"over": self._is_over(row)}]

    def _is_over(self, row: Row) -> bool:
        return row["closes_at"] is not None and row["closes_at"] <= self._now()

    def _add_sale_action(self, product: int, action: str, units: int | None, who: str, why: str) -> list[Row]:
        number = len(self.actions) + 1
        fields = {
            "product_id": product,
            "action": str(action),
            "units": units,
            "who": who,
            "why": why,
            "findings": None,
        }
        self.actions.append({"id": number, "at_ms": int(self.clock_s() * 1000), "published": False} | fields)
        return [{"id": number}]

    def _unpublished_sale_actions(self, limit: int) -> list[Row]:
        return [action for action in self.actions if not action["published"]][:limit]

    def _mark_sale_actions_published(self, ids: list[int]) -> list[Row]:
        for number in ids:
            self.actions[number - 1] = self.actions[number - 1] | {"published": True}
        return []

    def _apply_sale_action(self, product: int, action: str, action_id: int, units: int | None) -> list[Row]:
        row = self.products[product]
        states = {"pause": "paused", "resume": "open"}
        change = {"sale_action": action_id, "sale_state": states.get(action, row["sale_state"])}
        if action == "restock":
            change["initial"] = row["initial"] + (units or 0)
        self.products[product] = row | change | {"updated_at": self._now()}
        return []

    def _sale_actions(self, *_: Any) -> list[Row]:
        return []

    def _of(self, product: int) -> list[Row]:
        return [row for row in self.orders.values() if row["product_id"] == product]

    def _as_selected(self, row: Row) -> Row:
        """The columns that orders_by_id, settle_orders and unsettled_payments select."""
        shown = {name: value for name, value in row.items() if name not in _HIDDEN}
        return shown | {"read_at": self._now()}


_HIDDEN = frozenset({"epoch", "version", "available", "key_hash", "key_lost", "charge_id", "by_hand_since"})
