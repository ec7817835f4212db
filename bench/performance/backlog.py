"""The CPU per order with a backlog of 10,000, 100,000 or a million orders, and the CPU of an idle backlog."""

import asyncio
import statistics
import time

from bench.own_stack import thrones

from . import cpu
from .fill import Filler, filler
from .report import BacklogPoint, Report
from .size import Size
from .stack import Stack

IDLE_S = 5.0
IDLE_SAMPLES = 3  # the median counts: Redis may rewrite its log during one of them
STARTED = 0.02  # share of ended orders at which every process is busy
NEARLY_ALL = 0.97
DEADLINE_S = 3_600.0


async def measure(stack: Stack, report: Report, size: Size) -> None:
    await stack.redis.config_set("maxmemory", "6gb")  # a million held orders are more than the local default
    async with filler(stack) as fill:
        for orders in size.backlogs:
            report.backlogs.append(await _drain(stack, report, size, fill, orders))
    costs = [cpu.system_sum(point.ms_per_order) for point in report.backlogs]
    if len(costs) > 1:
        report.add("backlog_flat", costs[-1] / costs[0])


async def _drain(stack: Stack, report: Report, size: Size, fill: Filler, orders: int) -> BacklogPoint:
    stack.weather(**size.weather)
    sale = stack.sale(report, f"backlog of {orders:,}", stock=2 * orders)
    thrones("scale", "order-stage", "0")
    await fill.fill(sale, orders)
    idle_ms_per_s = await _idle(stack)
    thrones("scale", "order-stage", "1")
    await sale.wait_until_ended(STARTED, DEADLINE_S)
    before, counts, started_s = stack.cpu(), await sale.counts(), time.monotonic()
    done = await sale.wait_until_ended(NEARLY_ALL, DEADLINE_S)
    used, took_s = cpu.between(before, stack.cpu()), time.monotonic() - started_s
    ended = done.ended - counts.ended
    await sale.check_books(DEADLINE_S)
    return BacklogPoint(orders, round(ended / took_s, 1), cpu.per_order_ms(used, ended), idle_ms_per_s)


async def _idle(stack: Stack) -> float:
    return round(statistics.median([await _idle_once(stack) for _ in range(IDLE_SAMPLES)]), 1)


async def _idle_once(stack: Stack) -> float:
    before, started_s = stack.cpu(), time.monotonic()
    await asyncio.sleep(IDLE_S)
    used = cpu.between(before, stack.cpu())
    return 1000 * cpu.system_sum(used) / (time.monotonic() - started_s)
