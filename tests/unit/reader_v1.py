"""The reader of schema version 1 as it was released. FROZEN: it stands for the processes and programs that still run it.

Not changed with schemas/events.py (schemas/README.md, rule 7); a version 2 gets a file of its own beside it.
"""

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Positive = Annotated[int, Meta(ge=1, le=2**63 - 1)]
Units = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Quantity = Annotated[int, Meta(ge=1, le=2**31 - 1)]
ProductNumber = Annotated[int, Meta(ge=1, le=2**31 - 1)]
OrderIdText = Annotated[str, Meta(max_length=36, pattern="^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
Currency = Annotated[str, Meta(max_length=3, pattern="^[A-Z]{3}$")]
KeyHash = Annotated[str, Meta(max_length=64, pattern="^[0-9a-f]{64}$")]


class Status(StrEnum):
    QUEUED = "queued"
    PROCESSING = "processing"
    PENDING = "pending"
    AWAITING_PAYMENT = "awaiting_payment"
    PROCESSING_PAYMENT = "processing_payment"
    NEEDS_RECONCILIATION = "needs_reconciliation"
    CONFIRMED = "confirmed"
    PAYMENT_FAILED = "payment_failed"
    FAILED = "failed"


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True):
    pass


class OrderPlaced(Event, frozen=True, kw_only=True, tag="order.placed"):
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
    key_hash: KeyHash | UnsetType = UNSET
    redriven_from: OrderIdText | UnsetType = UNSET


class StockOpened(Event, frozen=True, kw_only=True, tag="stock.opened"):
    product_id: ProductNumber
    epoch: Positive
    initial: Units
    available: Units
    held: Units
    sold: Units
    opened_at_ms: Count
    reason: str


class PaymentRequested(Event, frozen=True, kw_only=True, tag="payment.requested"):
    order_id: OrderIdText
    product_id: ProductNumber
    requested_at_ms: Count


class Step(msgspec.Struct, frozen=True):
    status: Status
    at_ms: Count


class OrderStatusChanged(Event, frozen=True, kw_only=True, tag="order.status"):
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
    product_id: ProductNumber
    epoch: Positive
    version: Count
    available: Units
    at_ms: Count


AnyEvent = OrderPlaced | StockOpened | PaymentRequested | OrderStatusChanged | StockChanged
decode = msgspec.json.Decoder(AnyEvent).decode
encode = msgspec.json.Encoder().encode
