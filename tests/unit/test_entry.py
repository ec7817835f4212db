"""The held entry: one line of Redis from which order.placed is published again, byte for byte."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sale.books.entry import HeldEntry, parse, placed_head_of, placed_value
from schemas.codec import decode
from schemas.events import OrderPlaced
from schemas.ids import OrderId, UserId
from schemas.order_state import Entry
from tests.events import placements


def entry_of(event: OrderPlaced, state: Entry = Entry.HELD) -> HeldEntry:
    return HeldEntry(
        order_id=OrderId(event.order_id),
        state=state,
        epoch=event.epoch,
        version=event.version,
        available=event.available,
        quantity=event.quantity,
        user_id=UserId(event.user_id),
        at_ms=event.placed_at_ms,
        placed_head=placed_head_of(event),
    )


@given(placements, st.sampled_from([Entry.HELD, Entry.SOLD, Entry.RELEASED]))
def test_a_line_is_read_as_it_was_written(event: OrderPlaced, state: Entry) -> None:
    """Spaces inside the event's JSON do not confuse the line."""
    entry = entry_of(event, state)
    assert parse(entry.order_id, entry.line()) == entry


@given(placements)
def test_a_held_entry_alone_gives_back_the_event_that_was_or_should_have_been_published(event: OrderPlaced) -> None:
    """R2: the entry is the outbox. What the relay publishes equals what the gateway would have."""
    entry = entry_of(event)
    assert decode(entry.placed_value) == event
    head, at = entry.placed_head, entry.at_ms
    assert entry.placed_value == placed_value(head, at, entry.epoch, entry.version, entry.available)


@pytest.mark.parametrize("line", [b"", b"h", b"x 1 1 1 1 1 1 {", b"h one 1 1 1 1 1 {", b"h 1 1 1 1 1 1"])
def test_a_line_that_no_script_wrote_is_refused(line: bytes) -> None:
    with pytest.raises((ValueError, KeyError)):
        parse(OrderId("x"), line)
