"""What the scripts that open books and control sales are given of a product row."""

from datetime import datetime
from typing import Any

from sale.books import keys
from sale.books.rebuild.prepared_books import PreparedBooks
from schemas.clock import to_ms
from schemas.events import StockOpened
from schemas.ids import ProductId


def stock_fields(opened: StockOpened, product: Any, max_held: int, books: PreparedBooks, *, sold: int) -> list[str]:
    """The stock hash as field, value, ...; open.lua adds run, epoch and version. A missing field means none."""
    fields: dict[str, object] = {
        "state": product["sale_state"],
        "sale_action": product["sale_action"],
        "initial": opened.initial,
        "available": opened.available,
        "held": books.held_units,
        "held_orders": books.held_orders,
        "sold": sold,
        "name": product["name"],
        "price_cents": product["price_cents"],
        "currency": product["currency"],
        "per_user_limit": product["per_user_limit"],
        "max_quantity": product["max_quantity"],
        "opens_at_ms": _milliseconds(product["opens_at"]),
        "closes_at_ms": _milliseconds(product["closes_at"]),
        "created_ms": _milliseconds(product["created_at"]),
        "updated_ms": _milliseconds(product["updated_at"]),
        "max_held": max_held,
        "opened_from": books.opened_from,  # the offset from which to search for stock.opened
    }
    return [str(part) for pair in fields.items() if pair[1] is not None for part in pair]


def sale_arguments(product: Any) -> tuple[str, ...]:
    """The key and arguments of sale.lua for a product's row."""
    opens, closes = _milliseconds(product["opens_at"]), _milliseconds(product["closes_at"])
    times = ("" if at is None else str(at) for at in (opens, closes))
    over = product["closes_at"] is not None and product["closes_at"] <= product["read_at"]
    return (
        keys.stock(ProductId(product["id"])),
        str(product["sale_action"]),
        product["sale_state"],
        *times,
        str(int(over)),
    )


def _milliseconds(at: datetime | None) -> int | None:
    return None if at is None else to_ms(at)
