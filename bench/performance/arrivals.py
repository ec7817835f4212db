"""Open arrivals at 500 and 1,700 a second: the latency of acknowledgements from the intended time, and the CPU per order."""

import asyncio
import time

from . import cpu
from .report import CpuTable, Report
from .size import Size
from .stack import MeasuredSale, Stack

RATES = (500, 1_700)
CPU_AT = 500
SETTLING_S = 3.0  # until orders end at the rate of acceptance
EDGE_S = 0.5  # the window ends before the last arrival


async def measure(stack: Stack, report: Report, size: Size) -> None:
    for rate in RATES:
        stack.weather(**size.weather)
        sale = stack.sale(report, f"arrivals {rate:,}/s")
        for _ in range(size.repeats):
            await _arrive(sale, rate, size.arrivals_s / size.repeats)
        if rate == CPU_AT:
            await _cost(sale, rate, size.arrivals_s / 2)
        await sale.check_books()


async def _arrive(sale: MeasuredSale, rate: int, seconds: float) -> None:
    result = await sale.buy(mode="open", rate=float(rate), seconds=seconds, connections=1_000)
    report, spread = sale.report, result.acknowledgements
    if spread is None:
        raise RuntimeError(f"nothing was accepted at {rate}/s: {result.answers}")
    report.add(f"ack_{rate}_achieved", 100 * min(1.0, result.answered_per_s / rate))
    report.add(f"ack_{rate}_p95", spread.p95)
    report.add(f"ack_{rate}_p99", spread.p99)
    report.latencies[f"acknowledgement at {rate:,}/s"] = spread


async def _cost(sale: MeasuredSale, rate: int, seconds: float) -> None:
    """CPU between two moments within a run, so that every process is busy at both."""
    await sale.wait_until_ended(0.999)
    async with asyncio.TaskGroup() as group:
        group.create_task(sale.buy(mode="open", rate=float(rate), seconds=seconds + SETTLING_S))
        await asyncio.sleep(SETTLING_S)
        before, counts, started_s = sale.stack.cpu(), await sale.counts(), time.monotonic()
        await asyncio.sleep(seconds - EDGE_S)
        used, now, took_s = cpu.between(before, sale.stack.cpu()), await sale.counts(), time.monotonic() - started_s
    accepted, ended = now.accepted - counts.accepted, now.ended - counts.ended
    table = CpuTable(round(took_s, 1), accepted, ended, cpu.per_order_ms(used, ended))
    sale.report.cpu[f"{rate}/s"] = table
    sale.report.add(f"cpu_{rate}", cpu.system_sum(table.ms_per_order))
