"""A tally in, a live table on a terminal or a plain line a second elsewhere out."""

import asyncio
import time
from collections.abc import Callable

from rich.console import Console
from rich.live import Live
from rich.table import Table

from schemas.order_state import Status

from .tally import Tally, milliseconds, percentile

LIVE_EVERY_S = 0.25
LINE_EVERY_S = 1.0
OWN = "own: accepted to ended, less the provider's time"


async def show_progress(tally: Tally, console: Console) -> None:
    """Until cancelled; what stands at the end is shown once more."""
    started = time.monotonic()
    if console.is_terminal:
        with Live(_table(tally, 0.0), console=console, transient=False) as live:
            await _repeat(LIVE_EVERY_S, lambda: live.update(_table(tally, time.monotonic() - started)))
    else:
        await _repeat(
            LINE_EVERY_S,
            lambda: console.print(_line(tally, time.monotonic() - started), highlight=False, soft_wrap=True),
        )


async def _repeat(every_s: float, show: Callable[[], None]) -> None:
    try:
        while True:
            show()
            await asyncio.sleep(every_s)
    finally:
        show()


def _facts(tally: Tally) -> list[tuple[str, str]]:
    return [
        ("stock", "?" if tally.stock is None else str(tally.stock)),
        ("accepted", str(len(tally.accepted))),
        ("sold out", str(tally.refused["sold_out"])),
        ("confirmed", str(tally.ended(Status.CONFIRMED))),
        ("declined", str(tally.ended(Status.PAYMENT_FAILED))),
        ("unknown", str(tally.ended(Status.NEEDS_RECONCILIATION))),
        ("own p50", milliseconds(percentile(tally.own_delay_s, 50))),
        ("own p95", milliseconds(percentile(tally.own_delay_s, 95))),
    ]


def _line(tally: Tally, elapsed_s: float) -> str:
    return f"{elapsed_s:5.1f} s  " + "  ".join(f"{name} {value}" for name, value in _facts(tally))


def _table(tally: Tally, elapsed_s: float) -> Table:
    table = Table(title=f"The sale, {elapsed_s:.0f} s in", caption=OWN, title_justify="left", caption_justify="left")
    for name, _ in _facts(tally):
        table.add_column(name, justify="right", min_width=len(name))
    table.add_row(*(value for _, value in _facts(tally)))
    return table
