"""The events on the log, named in the past tense: JSON with a `type`, times in milliseconds since 1970, money in cents.

`epoch` numbers the books of a product (each opening, restock or rebuild gets a new one); `version` counts the script calls
that changed them, 1..V without a gap; `available` is the stock on sale after that call. They are always compared in that order.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from .order_state import Status

# Limits and patterns match the database columns: a value that passes the decoder is never rejected there permanently.
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Positive = Annotated[int, Meta(ge=1, le=2**63 - 1)]
Units = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Quantity = Annotated[int, Meta(ge=1, le=2**31 - 1)]
ProductNumber = Annotated[int, Meta(ge=1, le=2**31 - 1)]
OrderIdText = Annotated[str, Meta(max_length=36, pattern="^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
Currency = Annotated[str, Meta(max_length=3, pattern="^[A-Z]{3}$")]
KeyHash = Annotated[str, Meta(max_length=64, pattern="^[0-9a-f]{64}$")]


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True):
    """Base of all events. Readers ignore unknown fields, so they can read newer writers (see schemas/README.md)."""


class OrderPlaced(Event, frozen=True, kw_only=True, tag="order.placed"):
    """A reservation was accepted. Topic `orders`, key order id."""

    order_id: OrderIdText
    product_id: ProductNumber
    user_id: Positive
    quantity: Quantity
    unit_price_cents: Count
    currency: Currency
    placed_at_ms: Count
    epoch: Positive
    version: Positive
    available: Units
    key_hash: KeyHash | UnsetType = UNSET  # SHA-256 of the Idempotency-Key: a rebuild restores the key record from it
    redriven_from: OrderIdText | UnsetType = UNSET


class StockOpened(Event, frozen=True, kw_only=True, tag="stock.opened"):
    """A product's books were written anew under `epoch`. Topic `orders`, key product id; initial = available + held + sold.

    `held` includes the units of confirmed orders whose end is to be announced (again) in this epoch: with it they are sold.
    """

    product_id: ProductNumber
    epoch: Positive
    initial: Units
    available: Units
    held: Units
    sold: Units
    opened_at_ms: Count
    reason: str
    name: str | UnsetType = UNSET  # the product's; openings of before it was added have none
    # What may be missing of the epochs before, and is bounded by it (absent in older records):
    found_epoch: Count | UnsetType = UNSET  # of the books that Redis still had, 0 where it had none; with their version
    found_version: Count | UnsetType = UNSET
    announced_again: Count | UnsetType = UNSET  # orders that had ended, and whose end this epoch announces (again)
    log_lost: bool = False  # the log had lost what came before this record


class PaymentRequested(Event, frozen=True, kw_only=True, tag="payment.requested"):
    """The order stage stored the order; it may be charged. Topic `payments`, key order id. The amount is the row's."""

    order_id: OrderIdText
    product_id: ProductNumber
    requested_at_ms: Count


class Step(msgspec.Struct, frozen=True):
    """One passed status and when."""

    status: Status
    at_ms: Count


class OrderStatusChanged(Event, frozen=True, kw_only=True, tag="order.status"):
    """An order reached a status. Topic `order-status`, key order id.

    A terminal one carries the settlement's epoch, version, available and `returned` (units that went back on sale); they are
    absent only for an order that failed without ever being held by the books in force.
    """

    order_id: OrderIdText
    product_id: ProductNumber
    user_id: Positive
    quantity: Quantity
    total_cents: Count
    currency: Currency
    status: Status
    placed_at_ms: Count
    at_ms: Count
    steps: tuple[Step, ...] = ()
    reason: str | UnsetType = UNSET
    charge_started_at_ms: Count | UnsetType = UNSET
    charge_answered_at_ms: Count | UnsetType = UNSET
    epoch: Positive | UnsetType = UNSET
    version: Positive | UnsetType = UNSET
    available: Units | UnsetType = UNSET
    returned: Units | UnsetType = UNSET


class StockChanged(Event, frozen=True, kw_only=True, tag="stock.changed"):
    """A sample of a product's stock. Topic `stock-changes`, key product id."""

    product_id: ProductNumber
    epoch: Positive
    version: Count
    available: Units
    at_ms: Count


class SaleControlled(Event, frozen=True, kw_only=True, tag="sale.controlled"):
    """An operator did something to a sale. Topic `sale-actions`, key product id; a copy has the same `action_id`."""

    action_id: Positive
    product_id: ProductNumber
    action: Literal["pause", "resume", "close", "restock", "acknowledge"]
    units: Quantity | UnsetType = UNSET  # of a restock
    who: str
    why: str
    at_ms: Count
    findings: tuple[str, ...] = ()  # of an acknowledgement: what the audit had found, in its words


AnyEvent = OrderPlaced | StockOpened | PaymentRequested | OrderStatusChanged | StockChanged | SaleControlled
