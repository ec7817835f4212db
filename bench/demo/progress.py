"""A tally in, the sale live on a terminal or a plain line a second elsewhere out."""

import asyncio
import io
import re
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live

from infra.supervision.registry import live_rows
from schemas.order_state import TERMINAL, Status

from .sale_tally import SaleTally, at, milliseconds
from .view import WIDTH, RateSeries, screen

LIVE_INTERVAL_S = 0.25
LINE_INTERVAL_S = 1.0
MEMBERS_INTERVAL_S = 2.0
FONTS_FROM_AFAR = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)  # a picture loads nothing when it is looked at
TELLING = 0.6  # a picture of the sale is taken when so many orders have ended, as a share of the units


class LiveView:
    """How a sale goes, while `show` runs."""

    def __init__(self, tally: SaleTally, units: int, console: Console) -> None:
        self._tally, self._units, self._console = tally, units, console
        self._rates = RateSeries()
        self._members = live_rows()
        self._members_at = time.monotonic()
        self._telling: RenderableType | None = None

    async def show(self) -> None:
        """Until cancelled; what stands at the end is shown once more."""
        if self._console.is_terminal:
            with Live(self._screen(), console=self._console, auto_refresh=False) as live:
                await _repeat(LIVE_INTERVAL_S, lambda: live.update(self._screen(), refresh=True))
        else:
            await _repeat(LINE_INTERVAL_S, self._print_line)

    def save(self, path: Path) -> None:
        """The screen as it stood in mid-sale, as SVG."""
        console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
        console.print(self._telling or self._screen())
        svg = console.export_svg(title="make demo")
        path.write_text(FONTS_FROM_AFAR.sub("", svg))

    @property
    def _elapsed_s(self) -> float:
        """Since the first click."""
        return max(0.0, time.time() - self._tally.clients.first_s)

    def _screen(self) -> RenderableType:
        now = time.monotonic()
        if now - self._members_at > MEMBERS_INTERVAL_S:
            self._members, self._members_at = live_rows(), now
        view = screen(self._tally, self._units, self._elapsed_s, self._rates, self._members)
        if self._telling is None and self._tally.with_status(*TERMINAL) >= TELLING * self._units:
            self._telling = view
        return view

    def _print_line(self) -> None:
        self._screen()  # not shown here, but a picture may be asked for
        facts = "  ".join(f"{name} {value}" for name, value in _facts(self._tally))
        self._console.print(f"{self._elapsed_s:5.1f} s  {facts}", highlight=False, soft_wrap=True)


async def _repeat(every_s: float, show: Callable[[], None]) -> None:
    try:
        while True:
            show()
            await asyncio.sleep(every_s)
    finally:
        show()


def _facts(tally: SaleTally) -> list[tuple[str, str]]:
    own = at(tally.own_delay_ms)
    return [
        ("stock", "?" if tally.stock is None else str(tally.stock)),
        ("accepted", str(tally.accepted)),
        ("sold out", str(tally.refused["sold_out"])),
        ("confirmed", str(tally.with_status(Status.CONFIRMED))),
        ("declined", str(tally.with_status(Status.PAYMENT_FAILED))),
        ("unknown", str(tally.with_status(Status.NEEDS_RECONCILIATION))),
        ("own p50", milliseconds(own[50])),
        ("own p95", milliseconds(own[95])),
    ]
