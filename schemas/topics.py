"""The topics: names, keys, partitions, retention, and the groups that read them. Topic names are written only here."""

from dataclasses import dataclass
from enum import StrEnum

from .events import (
    AnyEvent,
    Event,
    OrderPlaced,
    OrderStatusChanged,
    PaymentRequested,
    SaleControlled,
    StockChanged,
    StockOpened,
)

DAY_MS = 86_400_000
FOR_EVER = -1


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic as it is created. Its timestamps are the broker's append times; no topic is compacted."""

    name: str
    key: str
    partitions: int
    retention_ms: int


ORDERS = Topic("orders", "order id (stock.opened: product id)", 6, FOR_EVER)
PAYMENTS = Topic("payments", "order id", 6, 7 * DAY_MS)
ORDER_STATUS = Topic("order-status", "order id", 6, FOR_EVER)
STOCK_CHANGES = Topic("stock-changes", "product id", 3, 7 * DAY_MS)
SALE_ACTIONS = Topic("sale-actions", "product id", 3, FOR_EVER)
DEAD_LETTERS = Topic("dead-letters", "as in the source topic", 3, 30 * DAY_MS)

ALL = (ORDERS, PAYMENTS, ORDER_STATUS, STOCK_CHANGES, SALE_ACTIONS, DEAD_LETTERS)

CARRIES: dict[str, tuple[type[Event], ...]] = {
    ORDERS.name: (OrderPlaced, StockOpened),
    PAYMENTS.name: (PaymentRequested,),
    ORDER_STATUS.name: (OrderStatusChanged,),
    STOCK_CHANGES.name: (StockChanged,),
    SALE_ACTIONS.name: (SaleControlled,),
}


def belongs(event: AnyEvent, topic: str) -> bool:
    """Whether the topic may carry this event. Readers dead-letter or skip one that it may not carry."""
    return isinstance(event, CARRIES.get(topic, ()))


ORDER_STAGE_GROUP = "order-stage"
PAYMENT_STAGE_GROUP = "payment-stage"
PROJECTOR_GROUP = "status-projector"


class StageName(StrEnum):
    """The groups whose number of members an operator chooses."""

    ORDER_STAGE = ORDER_STAGE_GROUP
    PAYMENT_STAGE = PAYMENT_STAGE_GROUP


CONSUMED_BY: dict[str, Topic] = {
    ORDER_STAGE_GROUP: ORDERS,
    PAYMENT_STAGE_GROUP: PAYMENTS,
    PROJECTOR_GROUP: ORDER_STATUS,
}
