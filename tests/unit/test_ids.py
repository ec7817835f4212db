"""Order ids name one order however they are spelled, and tell their age."""

import uuid

from hypothesis import given
from hypothesis import strategies as st

from schemas.clock import now_ms
from schemas.ids import OrderId, created_at_ms, new_order_id, parse_order_id


def test_ids_are_distinct_and_tell_when_they_were_drawn() -> None:
    """The first 48 bits are milliseconds since the epoch (RFC 9562, version 7)."""
    before = now_ms()
    ids = [new_order_id() for _ in range(1_000)]
    after = now_ms()
    assert len(set(ids)) == 1_000
    assert all(uuid.UUID(id_).version == 7 for id_ in ids)
    assert all(before <= created_at_ms(id_) <= after + 1 for id_ in ids)


@given(st.uuids())
def test_every_spelling_of_a_uuid_in_36_characters_is_the_same_order(drawn: uuid.UUID) -> None:
    """A client that shouts its order id means the same order."""
    assert parse_order_id(str(drawn)) == parse_order_id(str(drawn).upper()) == OrderId(str(drawn))


@given(st.text(max_size=40) | st.text("0123456789abcdefABCDEF-{}", min_size=36, max_size=36))
def test_any_other_text_is_no_order_id(text: str) -> None:
    """Total: an id or None, whatever a client puts into a path."""
    parsed = parse_order_id(text)
    assert parsed is None or (str(uuid.UUID(parsed)) == parsed and parsed == text.lower())
