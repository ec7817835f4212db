"""The rate that the whole pipeline sustains for a minute, payment included, without a growing backlog."""

import asyncio
import statistics
import time

from bench.tally import Result

from .ladder import Tried, best, next_rate
from .report import Report
from .size import Size
from .stack import Counts, MeasuredSale, Stack

FIRST_SHARE = 0.75  # first try, as a share of the drain rate of a backlog: acceptance costs CPU too
CAREFUL_SHARE = 0.6  # if only one rate is tried
FALLBACK_RATE = 300.0  # if no backlog was drained before
IN_FLIGHT_S = 3.0  # the time of a charge (p95 2.3 s): this much may always be in flight
GROWTH_MAX = 0.03  # allowed growth of the backlog beyond that, as a share of the orders in the window
TRIES = 3
EDGE_S = 0.5  # the window ends before the last arrival
ANSWERED_MIN = 0.99
ENDED_MIN = 0.95  # share of the orders in the window: a short window could hide a growing backlog


async def measure(stack: Stack, report: Report, size: Size) -> None:
    stack.weather(**size.weather)
    sale = stack.sale(report, "sustained", stock=1_000_000)
    tried: list[Tried] = []
    first = _first_rate(report, FIRST_SHARE if size.probes else CAREFUL_SHARE)
    rate: float | None = first
    for _ in range(size.probes):
        if rate is None:
            break
        tried.append(Tried(rate, (await _run(sale, rate, size.probe_s))[0]))
        rate = next_rate(tried)
    rate = best(tried) or min((t.rate * 0.8 for t in tried), default=first)
    for _ in range(TRIES):
        held, ended_per_s = await _run(sale, rate, size.sustained_s)
        if held:
            report.add("sustained", ended_per_s)
            break
        report.notes[f"not sustained: {rate:.0f}/s, ended/s"] = round(ended_per_s, 1)
        rate = min(0.9 * rate, ended_per_s)
    await sale.check_books()


def _first_rate(report: Report, share: float) -> float:
    drains = [value for name, value in report.notes.items() if name.endswith("drained/s")]
    return share * statistics.median(drains) if drains else FALLBACK_RATE


async def _run(sale: MeasuredSale, rate: float, seconds: float) -> tuple[bool, float]:
    """Whether the rate was sustained, and the orders ended a second after the first charges have ended."""
    await sale.wait_until_ended(0.999)
    async with asyncio.TaskGroup() as group:
        arrivals = group.create_task(sale.buy(mode="open", rate=rate, seconds=seconds + IN_FLIGHT_S))
        await asyncio.sleep(IN_FLIGHT_S)
        before, started_s = await sale.counts(), time.monotonic()
        await asyncio.sleep(seconds - EDGE_S)
        after, took_s = await sale.counts(), time.monotonic() - started_s
    return is_sustained(before, after, rate, arrivals.result()), (after.ended - before.ended) / took_s


def is_sustained(before: Counts, after: Counts, rate: float, result: Result) -> bool:
    """All were answered, as many ended as arrived, and the backlog did not grow beyond the charges in flight."""
    accepted = after.accepted - before.accepted
    answered = result.accepted >= ANSWERED_MIN * result.arrivals
    keeps_up = after.ended - before.ended >= ENDED_MIN * accepted
    return answered and keeps_up and after.accepted - after.ended <= rate * IN_FLIGHT_S + GROWTH_MAX * accepted
