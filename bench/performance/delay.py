"""Our own delay per order, from the terminal events on the log: from acceptance to the end, minus the time of the charge.

Acceptance is dated by Redis at the reservation, the end by the broker when the terminal event is appended, the charge by the
payment stage. All of them run on one machine.
"""

from collections.abc import AsyncIterator
from contextlib import suppress

from bench.tally import percentiles
from infra.kafka.client import make_consumer
from infra.kafka.offsets import Offsets
from infra.settings import Settings
from schemas.codec import Undecodable, decode
from schemas.events import OrderStatusChanged
from schemas.order_state import TERMINAL
from schemas.topics import ORDER_STATUS

from .report import Report
from .size import Size
from .stack import Stack

RATE = 200.0
POLL_MS = 1_000


async def measure(stack: Stack, report: Report, size: Size) -> None:
    stack.weather(**size.weather)
    sale = stack.sale(report, "own delay at 200/s")
    await sale.buy(mode="open", rate=RATE, seconds=size.delay_s)
    await sale.check_books()
    delays: list[float] = []
    async for event, appended_ms in terminal_events(stack.settings, sale.product):
        own_ms = own_delay_ms(event, appended_ms)
        if own_ms is not None:
            delays.append(own_ms)
    spread = percentiles(delays)
    if spread is None:
        raise RuntimeError("no order's own delay was to be found in the log")
    report.latencies["own delay at 200/s"] = spread
    for name, value in (("p50", spread.p50), ("p95", spread.p95), ("p99", spread.p99)):
        report.add(f"own_{name}", value)


def own_delay_ms(event: OrderStatusChanged, appended_ms: int) -> float | None:
    """None for an order that was never charged."""
    if not event.charge_started_at_ms or not event.charge_answered_at_ms:
        return None
    return float(appended_ms - event.placed_at_ms - (event.charge_answered_at_ms - event.charge_started_at_ms))


async def terminal_events(settings: Settings, product: int) -> AsyncIterator[tuple[OrderStatusChanged, int]]:
    """The end of each order, once, with its append time (ms)."""
    seen: set[str] = set()
    async for value, appended_ms in _records(settings):
        with suppress(Undecodable):
            event = decode(value)
            if isinstance(event, OrderStatusChanged) and event.product_id == product and event.status in TERMINAL:
                if event.order_id not in seen:
                    yield event, appended_ms
                seen.add(event.order_id)


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
