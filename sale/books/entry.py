"""The held entry of an order, one string in Redis: its ledger line, its outbox and its to-do item.

`state epoch version available quantity user at_ms order.placed-without-its-tail`, state h (held), s (sold) or r (released).
While held, epoch, version and available are those of the reservation; once settled, those of the settlement.
"""

import msgspec

from schemas.events import OrderPlaced
from schemas.ids import OrderId, UserId
from schemas.order_state import Entry

STATES = {"h": Entry.HELD, "s": Entry.SOLD, "r": Entry.RELEASED}
LETTERS = {state: letter for letter, state in STATES.items()}


class HeldEntry(msgspec.Struct, frozen=True):
    """One parsed entry. `at_ms`: the time of the reservation, or of the settlement."""

    order_id: OrderId
    state: Entry
    epoch: int
    version: int
    available: int
    quantity: int
    user_id: UserId
    at_ms: int
    placed_head: bytes

    @property
    def placed_value(self) -> bytes:
        """The bytes of order.placed, the same as those from the gateway. Valid only while held."""
        return placed_value(self.placed_head, self.at_ms, self.epoch, self.version, self.available)

    def line(self) -> bytes:
        head = (LETTERS[self.state], self.epoch, self.version, self.available, self.quantity, self.user_id, self.at_ms)
        return " ".join(map(str, head)).encode() + b" " + self.placed_head


def parse(order_id: OrderId, line: bytes) -> HeldEntry:
    """Raises ValueError for a line that none of our scripts wrote."""
    state, epoch, version, available, quantity, user, at_ms, head = line.split(b" ", 7)
    return HeldEntry(
        order_id=order_id,
        state=STATES[state.decode()],
        epoch=int(epoch),
        version=int(version),
        available=int(available),
        quantity=int(quantity),
        user_id=UserId(int(user)),
        at_ms=int(at_ms),
        placed_head=head,
    )


class PlacedHead(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="order.placed", omit_defaults=True):
    """The fields of order.placed that are known before the reservation."""

    order_id: str
    product_id: int
    user_id: int
    quantity: int
    unit_price_cents: int
    currency: str
    key_hash: str | msgspec.UnsetType = msgspec.UNSET
    redriven_from: str | msgspec.UnsetType = msgspec.UNSET


_head_encoder = msgspec.json.Encoder()


def placed_head(head: PlacedHead) -> bytes:
    """order.placed up to the fields that the reservation adds."""
    return _head_encoder.encode(head)[:-1]


def placed_value(head: bytes, at_ms: int, epoch: int, version: int, available: int) -> bytes:
    """The complete order.placed value."""
    return head + b',"placed_at_ms":%d,"epoch":%d,"version":%d,"available":%d}' % (at_ms, epoch, version, available)


def placed_head_of(event: OrderPlaced) -> bytes:
    """The head of an event from the log, for the entries of a rebuild."""
    return placed_head(
        PlacedHead(
            order_id=event.order_id,
            product_id=event.product_id,
            user_id=event.user_id,
            quantity=event.quantity,
            unit_price_cents=event.unit_price_cents,
            currency=event.currency,
            key_hash=event.key_hash,
            redriven_from=event.redriven_from,
        )
    )
