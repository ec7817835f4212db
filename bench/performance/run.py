"""Runs the chapters of a measurement, each on a new stack, so that none is affected by an earlier one."""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench import micro, run_card

from . import (
    arrivals,
    backlog,
    burst,
    cold,
    delay,
    limits,
    members,
    overload,
    profiles,
    pushes,
    stock_stream,
    sustained,
)
from .report import Report
from .size import Size
from .stack import FAIR, Stack, own_stack_running

Measure = Callable[[Stack, Report, Size], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Chapter:
    """Measures by name, on one stack with these settings in addition to the defaults; `cold`: on several, one after another."""

    measures: dict[str, Measure]
    warm_up: bool = False
    cold: bool = False
    settings: dict[str, str] = field(default_factory=dict)


CHAPTERS = (
    Chapter({"cold_rush": cold.rush}, cold=True),
    Chapter({"cold_500": cold.steady}, cold=True),
    Chapter({"cold_1000": cold.full}, cold=True),
    Chapter({"cold_busy": cold.in_company}, cold=True),
    # Without the bound on the wait: a closed load would only measure how fast it is refused.
    Chapter({"burst": burst.measure}, warm_up=True, settings={"MAX_WAIT_S": "100000"}),
    Chapter({"sustained": sustained.measure}, warm_up=True),
    Chapter(
        {
            "delay": delay.measure,
            "arrivals": arrivals.measure,
            "pushes": pushes.measure,
            "overload": overload.measure,
        },
        warm_up=True,
    ),
    Chapter({"stream": stock_stream.measure, "members": members.measure}),
    Chapter({"backlog": backlog.measure}, settings={"MAX_HELD": "4000000", "MAX_WAIT_S": "100000"}),
    Chapter({"profiles": profiles.measure}),
)
MICRO, LIMITS = "micro", "limits"
WARM_UP_RATE = 800.0
NAMES = [*(name for chapter in CHAPTERS for name in chapter.measures), MICRO, LIMITS]


def wanted(size: Size, only: frozenset[str]) -> frozenset[str]:
    """`only` names measures; if empty, all measures of this size."""
    has = {"members": size.member_orders, "backlog": size.backlogs, "profiles": size.profiles}
    return only or frozenset(name for name in NAMES if has.get(name, True))


async def run(size: Size, state_dir: Path, only: frozenset[str] = frozenset()) -> Report:
    """A measure that fails is recorded as a failure, and the others continue. Raises CommandFailed without a stack."""
    report, started_s, names = Report(size=size.name), time.monotonic(), wanted(size, only)
    for chapter in CHAPTERS:
        measures = {name: measure for name, measure in chapter.measures.items() if name in names}
        if not measures:
            continue
        for _ in range(size.cold_repeats if chapter.cold else 1):
            async with own_stack_running(state_dir, chapter.settings) as stack:
                report.card = report.card or run_card.take()
                if chapter.warm_up:
                    await _warm_up(stack, size.warm_up_s)
                for name, measure in measures.items():
                    say(started_s, name)
                    await _attempt(name, measure(stack, report, size), report)
    if MICRO in names:
        say(started_s, MICRO)
        await _attempt(MICRO, _micro(report, size), report)
    if LIMITS in names:
        say(started_s, LIMITS)
        await _attempt(LIMITS, _limits(report, state_dir), report)
    report.seconds = round(time.monotonic() - started_s, 1)
    return report


async def _warm_up(stack: Stack, seconds: float) -> None:
    """Warm up the broker: in its first seconds the JVM compiles, unlike in a server that has run for a day."""
    stack.weather(**FAIR)
    sale = stack.sale(Report("warm-up"), "warm-up")
    await sale.buy(mode="open", rate=WARM_UP_RATE, seconds=seconds)
    await sale.check_books()


async def _micro(report: Report, size: Size) -> None:
    report.micro = await micro.measure(size.micro_rounds)


async def _limits(report: Report, state_dir: Path) -> None:
    report.limits = await limits.measure(state_dir)


async def _attempt(name: str, measuring: Awaitable[None], report: Report) -> None:
    try:
        await measuring
    except asyncio.CancelledError:
        raise
    except Exception as error:  # the report and the exit code show it, and the other figures are kept
        report.failures.append(f"{name}: {type(error).__name__}: {error}")
        print(report.failures[-1], file=sys.stderr, flush=True)


def say(started_s: float, what: str) -> None:
    print(f"{time.monotonic() - started_s:6.0f} s  {what}", file=sys.stderr, flush=True)
