"""Events survive the way through bytes; everything else is Undecodable, with a reason, and nothing worse."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.codec import MAX_EVENT_BYTES, VERSION_HEADER, Undecodable, decode, encode
from schemas.events import AnyEvent, OrderPlaced, PaymentRequested
from schemas.ids import new_order_id
from tests.events import events, placements

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)


@given(events)
def test_every_event_is_read_as_it_was_written(event: AnyEvent) -> None:
    """Nothing is lost or changed between two processes."""
    assert decode(encode(event), (VERSION_HEADER,)) == event


@given(st.binary(max_size=300) | JSON.map(msgspec.json.encode))
def test_any_bytes_are_an_event_or_undecodable(value: bytes) -> None:
    """Total: no input raises anything else, so a poison record cannot end a stage by its bytes."""
    try:
        event = decode(value)
    except Undecodable:
        return
    assert decode(encode(event)) == event


@given(placements, st.data())
def test_an_event_with_one_field_changed_for_the_worse_is_undecodable(event: OrderPlaced, data: st.DataObject) -> None:
    """Types and bounds are checked field by field: what passes can be stored."""
    fields: dict[str, Any] = msgspec.json.decode(encode(event))
    name = data.draw(st.sampled_from(sorted(fields)))
    if isinstance(fields[name], int):
        fields[name] = data.draw(st.sampled_from([-1, 2**63, 1.5, "1", True, None, [], 10**30]))
    else:
        fields[name] = data.draw(st.sampled_from([1, None, "", "\0", "x" * 1_000, "é", [], {}, fields[name] + "\n"]))
    with pytest.raises(Undecodable):
        decode(msgspec.json.encode(fields))


@pytest.mark.parametrize("missing", ["type", "order_id", "product_id", "requested_at_ms"])
def test_a_missing_field_is_named(missing: str) -> None:
    event = PaymentRequested(order_id=new_order_id(), product_id=1, requested_at_ms=1)
    fields: dict[str, Any] = msgspec.json.decode(encode(event))
    del fields[missing]
    with pytest.raises(Undecodable, match=missing):
        decode(msgspec.json.encode(fields))


@pytest.mark.parametrize(
    "order_id",
    [
        "",
        "o1",
        "0190A0B0-0000-7000-8000-00000000000A",
        "0190a0b0000070008000000000000001",
        "{0190a0b0-0000-7000-8000-00}",
    ],
)
def test_only_the_canonical_spelling_is_an_order_id_on_the_log(order_id: str) -> None:
    """Otherwise one order would have two keys, and a spelling that Postgres refuses would stop a stage."""
    with pytest.raises(Undecodable):
        decode(encode(PaymentRequested(order_id=order_id, product_id=1, requested_at_ms=1)))


@given(events)
def test_fields_of_a_newer_writer_are_passed_over(event: AnyEvent) -> None:
    """New fields may be added without a new version (schemas/README.md)."""
    fields: dict[str, Any] = msgspec.json.decode(encode(event))
    assert decode(msgspec.json.encode(fields | {"added_later": {"deep": [1]}})) == event


def test_an_unknown_version_a_null_and_a_giant_are_refused_before_they_are_parsed() -> None:
    value = encode(PaymentRequested(order_id=new_order_id(), product_id=1, requested_at_ms=1))
    assert decode(value, (("other", b"9"),)) == decode(value)
    with pytest.raises(Undecodable, match="version"):
        decode(value, (("schema-version", b"2"),))
    with pytest.raises(Undecodable, match="null"):
        decode(None)
    with pytest.raises(Undecodable, match="at most"):
        decode(value + b" " * MAX_EVENT_BYTES)


@pytest.mark.parametrize("depth", [100, 30_000])
@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_deep_json_is_undecodable_and_exhausts_nothing(opening: bytes, depth: int) -> None:
    deep = (opening * depth)[: MAX_EVENT_BYTES - 100]
    for value in (deep, b'{"type":"payment.requested","x":' + deep):
        with pytest.raises(Undecodable):
            decode(value)
