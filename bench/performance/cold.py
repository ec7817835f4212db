"""The first seconds of a stack that has just started: each measure gets a new stack, and no warm-up.

The log tells how long orders waited for us: own delay is the time from acceptance to the end without the charge; an end is
late by the time since the provider's answer.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from bench.order_ends import own_delay_ms, terminal_events
from bench.tally import Percentiles, Result, percentiles

from .report import Report
from .size import Size
from .stack import MeasuredSale, Stack

RUSH_UNITS, RUSH_BUYERS, RUSH_S = 1_000, 3_000, 3.0
BUSY_LOOPS = 2
LONGEST_LOOP_S = 300
BUSY_LOOP = f"import time\nend = time.monotonic() + {LONGEST_LOOP_S}\nwhile time.monotonic() < end: pass"


class Waits(NamedTuple):
    own_ms: Percentiles
    late_ms: float  # the latest end after its charge's answer
    last_ms: float  # the last end after the last answer


async def rush(stack: Stack, report: Report, size: Size) -> None:
    """The crowd of the demo: some buyers click twice, and most leave without a unit."""
    sale = _sale(stack, report, size, "cold rush", RUSH_UNITS)
    rate = RUSH_BUYERS / RUSH_S
    result = await sale.buy(
        mode="open", rate=rate, seconds=RUSH_S, connections=RUSH_BUYERS, double_clicks=0.2, retries=7
    )
    _add(report, "cold_rush_ack", _spread(result), "p50", "p99")
    waits = await _waits(sale)
    _add(report, "cold_rush_own", waits.own_ms, "p50", "p95")
    report.add("cold_rush_last", waits.last_ms)


async def steady(stack: Stack, report: Report, size: Size) -> None:
    sale = _sale(stack, report, size, "cold 500/s")
    result = await sale.buy(mode="open", rate=500.0, seconds=10.0, connections=1_000)
    _add(report, "cold_500_ack", _spread(result), "p95", "p99")
    _add(report, "cold_500_own", (await _waits(sale)).own_ms, "p95")


async def full(stack: Stack, report: Report, size: Size) -> None:
    sale = _sale(stack, report, size, "cold 1,000/s")
    result = await _full(sale, size)
    report.add("cold_1000_ended", (await sale.counts()).ended / size.cold_s)
    report.latencies["acknowledgement, cold, 1,000/s"] = _spread(result)
    _add(report, "cold_1000_own", (await _waits(sale)).own_ms, "p95")


async def in_company(stack: Stack, report: Report, size: Size) -> None:
    """As `full`, while two other programs want a core each."""
    sale = _sale(stack, report, size, "cold 1,000/s, two busy loops")
    with _busy_loops():
        result = await _full(sale, size)
        await sale.wait_until_ended()
    waits = await _waits(sale)
    report.add("cold_busy_late", waits.late_ms)
    report.notes["cold, 1,000/s, two busy loops: accepted/s"] = result.accepted_per_s
    report.latencies["own delay, cold, 1,000/s, two busy loops"] = waits.own_ms
    if result.refusals is not None:
        report.latencies["refusal, cold, 1,000/s, two busy loops"] = result.refusals


def _sale(stack: Stack, report: Report, size: Size, name: str, stock: int = 400_000) -> MeasuredSale:
    stack.weather(**size.weather)
    return stack.sale(report, name, stock)


async def _full(sale: MeasuredSale, size: Size) -> Result:
    return await sale.buy(mode="open", rate=1_000.0, seconds=size.cold_s, connections=2_000)


def _spread(result: Result) -> Percentiles:
    if result.acknowledgements is None:
        raise RuntimeError(f"nothing was accepted: {result.answers}")
    return result.acknowledgements


def _add(report: Report, key: str, spread: Percentiles, *names: str) -> None:
    for name in names:
        report.add(f"{key}_{name}", getattr(spread, name))


async def _waits(sale: MeasuredSale) -> Waits:
    """Check the books, then read the ends of all orders from the log."""
    await sale.check_books()
    own, ends, answers, late = [], [0], [0], [0]
    async for event, appended_ms in terminal_events(sale.stack.settings, sale.product):
        own_ms = own_delay_ms(event, appended_ms)
        if own_ms is not None and event.charge_answered_at_ms:
            own.append(own_ms)
            ends.append(appended_ms)
            answers.append(event.charge_answered_at_ms)
            late.append(appended_ms - event.charge_answered_at_ms)
    spread = percentiles(own)
    if spread is None:
        raise RuntimeError("no order's own delay was to be found in the log")
    return Waits(spread, max(late), max(ends) - max(answers))


@contextmanager
def _busy_loops() -> Iterator[None]:
    """In sessions of their own: where the kernel groups by session, each weighs as much as one of our processes."""
    loops = [subprocess.Popen([sys.executable, "-c", BUSY_LOOP], start_new_session=True) for _ in range(BUSY_LOOPS)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
