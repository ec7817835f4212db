"""The identifier types. An order id is a UUIDv7 (RFC 9562), so it contains its own creation time."""

from typing import NewType

import uuid_utils

OrderId = NewType("OrderId", str)
UserId = NewType("UserId", int)
ProductId = NewType("ProductId", int)


def new_order_id() -> OrderId:
    """A new order id. The gateway draws it before the reservation, so that every retry names the same order."""
    return OrderId(str(uuid_utils.uuid7()))


def parse_order_id(text: str) -> OrderId | None:
    """The canonical form of an order id, or None if `text` is not a UUID."""
    if len(text) != 36:
        return None
    try:
        return OrderId(str(uuid_utils.UUID(text)))
    except ValueError:
        return None


def created_at_ms(order_id: OrderId) -> int:
    """Milliseconds since the epoch at which the id was drawn (its first 48 bits)."""
    return int(order_id[:8] + order_id[9:13], 16)
