"""Overload before and after a sell-out: the answers to it, and the time until the system has recovered."""

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from bench.client_log import Answered
from bench.tally import Result, percentiles
from schemas.clock import now_ms

from .report import Report
from .size import Size
from .stack import MeasuredSale, Stack

PROCESSES = 2
NORMAL_RATE = 200.0
BUCKET_MS = 500
NORMAL_P95_MS = 50.0


async def measure(stack: Stack, report: Report, size: Size) -> None:
    for rate in size.overloads:
        bad = [await _both(stack, report, size, rate) for _ in range(size.overload_repeats)]
        report.add(f"over_{rate}_bad", sum(bad))  # the sum, not the median: no run may have one


async def _both(stack: Stack, report: Report, size: Size, rate: int) -> int:
    """Overload after a sell-out, then before one, then calm arrivals. Returns the number of forbidden answers."""
    stack.weather(**size.weather)
    calm = stack.sale(report, f"after {rate:,}/s")
    sold_out = stack.sale(report, f"overload {rate:,}/s, sold out", stock=0)
    plenty = stack.sale(report, f"overload {rate:,}/s, plenty")
    after = await _overload(sold_out, rate, size.overload_s)
    before = await _overload(plenty, rate, size.overload_s)
    report.add(f"over_{rate}_recovery", await _recovery_s(calm, size.normal_s))
    _record_results(report, rate, before, after)
    await asyncio.gather(*(sale.check_books() for sale in (sold_out, plenty, calm)))
    return bad_answers(before.answers) + bad_answers(after.answers)


async def _overload(sale: MeasuredSale, rate: int, seconds: float) -> Result:
    return await sale.buy(mode="open", rate=float(rate), seconds=seconds, processes=PROCESSES, connections=4_000)


def _record_results(report: Report, rate: int, before: Result, after: Result) -> None:
    for name, result in (("before", before), ("after", after)):
        report.notes[f"{rate:,}/s {name} sell-out: accepted/s"] = result.accepted_per_s
        report.notes[f"{rate:,}/s {name} sell-out: answered/s"] = result.answered_per_s
        if result.acknowledgements is not None:
            report.latencies[f"acknowledgement at {rate:,}/s"] = result.acknowledgements
        if result.refusals is not None:
            report.latencies[f"refusal at {rate:,}/s {name} sell-out"] = result.refusals
    refusals = [spread.p99 for spread in (before.refusals, after.refusals) if spread is not None]
    report.add(f"over_{rate}_refused_p99", max(refusals, default=0.0))


def bad_answers(answers: dict[str, int]) -> int:
    """The forbidden answers in counts by "status code": no answer, and every 5xx except 503."""
    statuses = {name: int(name.split()[0]) for name in answers}
    return sum(count for name, count in answers.items() if statuses[name] == 0 or 500 <= statuses[name] != 503)


async def _recovery_s(sale: MeasuredSale, seconds: float) -> float:
    """Call it at the end of an overload: seconds of calm arrivals until acknowledgements stay normal."""
    ended_ms = now_ms()
    await sale.buy(mode="open", rate=NORMAL_RATE, seconds=seconds)
    return recovery_s(ended_ms, await asyncio.to_thread(_acknowledgements, sale.log))


def _acknowledgements(log: Path) -> list[tuple[int, float]]:
    """The time of each request, and its latency."""
    decoder = msgspec.json.Decoder(Answered)
    lines = [decoder.decode(line) for line in log.read_bytes().splitlines()]
    return [(round(line.at_ms - line.latency_ms), line.latency_ms) for line in lines if line.outcome == "A"]


def recovery_s(ended_ms: int, asked: Iterable[tuple[int, float]]) -> float:
    """The end of the last half second whose p95 was above normal; 0 if there was none."""
    buckets: dict[int, list[float]] = {}
    for at_ms, latency_ms in asked:
        buckets.setdefault((at_ms - ended_ms) // BUCKET_MS, []).append(latency_ms)
    if not buckets:
        raise ValueError("nothing was acknowledged after the overload")
    slow = [number for number, latencies in buckets.items() if _p95(latencies) > NORMAL_P95_MS]
    return (max(slow) + 1) * BUCKET_MS / 1000 if slow else 0.0


def _p95(latencies: Sequence[float]) -> float:
    spread = percentiles(latencies)
    return spread.p95 if spread else 0.0
