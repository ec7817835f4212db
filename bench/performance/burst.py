"""A burst of 64 keep-alive connections that buy as fast as they can, then its backlog: accepted and ended orders a second."""

import asyncio
import time

from . import cpu
from .report import CpuTable, Report, Sample
from .size import Size
from .stack import MeasuredSale, Stack

CONNECTIONS = 64
NEARLY_ALL = 0.97  # the rest are slow payments, not work
SAMPLE_INTERVAL_S = 0.5


async def measure(stack: Stack, report: Report, size: Size) -> None:
    for number in range(size.repeats):
        stack.weather(**size.weather)
        sale = stack.sale(report, f"burst {number + 1}")
        before, started_s = stack.cpu(), time.monotonic()
        samples: list[Sample] = []
        sampling = asyncio.create_task(_sample(sale, started_s, samples))
        result = await sale.buy(mode="closed", connections=CONNECTIONS, seconds=size.burst_s)
        at_end, ended_s = await sale.counts(), time.monotonic()
        done = await sale.wait_until_ended(NEARLY_ALL)
        drained_s = time.monotonic() - ended_s
        sampling.cancel()
        used = cpu.between(before, stack.cpu())
        report.add("burst_accepted", result.accepted_per_s)
        report.add("burst_ended", 100 * at_end.ended / at_end.accepted)
        report.notes[f"burst {number + 1}: ended/s meanwhile"] = round(at_end.ended / (ended_s - started_s), 1)
        report.notes[f"burst {number + 1}: drained/s"] = round((done.ended - at_end.ended) / drained_s, 1)
        table = CpuTable(time.monotonic() - started_s, done.accepted, done.ended, cpu.per_order_ms(used, done.ended))
        report.cpu[f"full load {number + 1}"] = table
        report.add("cpu_full", cpu.system_sum(table.ms_per_order))
        if number == 0:
            report.burst = samples
        await sale.check_books()


async def _sample(sale: MeasuredSale, started_s: float, samples: list[Sample]) -> None:
    """Until cancelled."""
    while True:
        counts = await sale.counts()
        samples.append(Sample(round(time.monotonic() - started_s, 2), counts.accepted, counts.ended))
        await asyncio.sleep(SAMPLE_INTERVAL_S)
