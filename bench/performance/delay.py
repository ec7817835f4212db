"""Our own delay per order at 200 orders a second."""

from bench.order_ends import own_delay_ms, terminal_events
from bench.tally import percentiles

from .report import Report
from .size import Size
from .stack import Stack

RATE = 200.0


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
