"""How orders ended, from the terminal events on the log, and our own delay: from acceptance to the end, minus the charge.

Acceptance is dated by Redis at the reservation, the end by the broker when the terminal event is appended, the charge by the
payment stage. All of them run on one machine.
"""

from collections.abc import AsyncIterator

from infra.kafka.client import make_consumer
from infra.kafka.offsets import Offsets
from infra.settings import Settings
from schemas.codec import Undecodable, decode
from schemas.events import OrderStatusChanged
from schemas.order_state import TERMINAL
from schemas.topics import ORDER_STATUS

POLL_MS = 1_000


def own_delay_ms(event: OrderStatusChanged, appended_ms: int) -> float | None:
    """None for an order that was never charged."""
    if not event.charge_started_at_ms or not event.charge_answered_at_ms:
        return None
    return float(appended_ms - event.placed_at_ms - (event.charge_answered_at_ms - event.charge_started_at_ms))


async def terminal_events(settings: Settings, product: int) -> AsyncIterator[tuple[OrderStatusChanged, int]]:
    """The end of each order, once, with its append time (ms)."""
    seen: set[str] = set()
    async for value, appended_ms in _records(settings):
        event = status_event_of(value, product)
        if event is not None and event.status in TERMINAL and event.order_id not in seen:
            seen.add(event.order_id)
            yield event, appended_ms


def status_event_of(value: bytes, product: int) -> OrderStatusChanged | None:
    """None for any other record, and for another product."""
    try:
        event = decode(value)
    except Undecodable:
        return None
    return event if isinstance(event, OrderStatusChanged) and event.product_id == product else None


async def _records(settings: Settings) -> AsyncIterator[tuple[bytes, int]]:
    """All records of the topic up to its present end."""
    offsets = Offsets(settings)
    ends = await offsets.ends(ORDER_STATUS)
    await offsets.close()
    consumer = make_consumer(settings, ORDER_STATUS.name)
    await consumer.start()
    try:
        left = {partition for partition, end in ends.items() if end}
        while left:
            for tp, records in (await consumer.getmany(timeout_ms=POLL_MS)).items():
                for record in records:
                    yield record.value, record.timestamp
                if records[-1].offset + 1 >= ends[tp.partition]:
                    left.discard(tp.partition)
    finally:
        await consumer.stop()
