"""Strategies for every event of the log, within the bounds that its schema states."""

from hypothesis import strategies as st
from msgspec import UNSET

from schemas.events import (
    AnyEvent,
    OrderPlaced,
    OrderStatusChanged,
    PaymentRequested,
    SaleControlled,
    Step,
    StockChanged,
    StockOpened,
)
from schemas.order_state import Status

counts = st.integers(0, 2**63 - 1)
positives = st.integers(1, 2**63 - 1)
units = st.integers(0, 2**31 - 1)
numbers = st.integers(1, 2**31 - 1)
order_ids = st.uuids().map(str)
currencies = st.sampled_from(["USD", "EUR", "JPY"])
hashes = st.text("0123456789abcdef", min_size=64, max_size=64)
texts = st.text(max_size=40)
steps = st.builds(Step, status=st.sampled_from(Status), at_ms=counts)

placements = st.builds(
    OrderPlaced,
    order_id=order_ids,
    product_id=numbers,
    user_id=positives,
    quantity=numbers,
    unit_price_cents=counts,
    currency=currencies,
    placed_at_ms=counts,
    epoch=positives,
    version=positives,
    available=units,
    key_hash=st.just(UNSET) | hashes,
    redriven_from=st.just(UNSET) | order_ids,
)
openings = st.builds(
    StockOpened,
    product_id=numbers,
    epoch=positives,
    initial=units,
    available=units,
    held=units,
    sold=units,
    opened_at_ms=counts,
    reason=texts,
)
requests = st.builds(PaymentRequested, order_id=order_ids, product_id=numbers, requested_at_ms=counts)
statuses = st.builds(
    OrderStatusChanged,
    order_id=order_ids,
    product_id=numbers,
    user_id=positives,
    quantity=numbers,
    total_cents=counts,
    currency=currencies,
    status=st.sampled_from(Status),
    placed_at_ms=counts,
    at_ms=counts,
    steps=st.lists(steps, max_size=4).map(tuple),
    reason=st.just(UNSET) | texts,
    charge_started_at_ms=st.just(UNSET) | counts,
    charge_answered_at_ms=st.just(UNSET) | counts,
    epoch=st.just(UNSET) | positives,
    version=st.just(UNSET) | positives,
    available=st.just(UNSET) | units,
    returned=st.just(UNSET) | units,
)
samples = st.builds(StockChanged, product_id=numbers, epoch=positives, version=counts, available=units, at_ms=counts)
controls = st.builds(
    SaleControlled,
    action_id=positives,
    product_id=numbers,
    action=st.sampled_from(["pause", "resume", "close", "restock"]),
    units=st.just(UNSET) | numbers,
    who=texts,
    why=texts,
    at_ms=counts,
)

events: st.SearchStrategy[AnyEvent] = st.one_of(placements, openings, requests, statuses, samples, controls)
