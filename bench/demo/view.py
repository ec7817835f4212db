"""A tally and the processes that run in, the sale as one screen out: stock, rates, funnel, delays, members."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich import box
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from infra.supervision.registry import ProcessRow
from schemas.order_state import TERMINAL, Status

from .sale_tally import SaleTally, at, milliseconds

SPARKS = "▁▂▃▄▅▆▇█"
BUCKET_S = 0.5  # one spark
SPARKS_SHOWN = 28
BAR_CELLS = 44
WIDTH = 96


@dataclass(slots=True)
class RateSeries:
    """Counts so far in, changes a bucket out."""

    series: dict[str, list[int]] = field(default_factory=dict)
    _last: dict[str, int] = field(default_factory=dict)
    _bucket: int = -1

    def add(self, elapsed_s: float, counts: dict[str, int]) -> None:
        bucket = int(elapsed_s / BUCKET_S)
        for name, count in counts.items():
            values = self.series.setdefault(name, [])
            values += [0] * (bucket - self._bucket if self._bucket >= 0 else 1)
            values[-1] += count - self._last.get(name, 0)
            self._last[name] = count
        self._bucket = bucket


def sparkline(values: Sequence[int]) -> str:
    """The last values as bars; the highest of them is a full one."""
    shown = values[-SPARKS_SHOWN:]
    top = max(shown, default=0) or 1
    return "".join(SPARKS[min(len(SPARKS) - 1, value * len(SPARKS) // (top + 1))] for value in shown)


def screen(
    tally: SaleTally, units: int, elapsed_s: float, rates: RateSeries, members: Sequence[ProcessRow]
) -> RenderableType:
    """Everything at once, WIDTH columns wide."""
    counts = {"accepted": tally.accepted, "refused": tally.refused.total(), "ended": tally.with_status(*TERMINAL)}
    rates.add(elapsed_s, counts)
    halves = Columns([_panel("Orders", _funnel(tally)), _panel("Delays", _delays(tally))], padding=(0, 1))
    return Panel(
        Group(_stock(tally, units), Text(), _rates(rates), Text(), halves, Text(), _members(members)),
        title=f"[bold]the sale, {elapsed_s:4.1f} s in[/bold]",
        subtitle=f"{units:,} units, {tally.buyers:,} buyers, {tally.watchers} watching the stock",
        box=box.ROUNDED,
        width=WIDTH,
        padding=(1, 2),
    )


def _stock(tally: SaleTally, units: int) -> Text:
    left = units if tally.stock is None else tally.stock
    cells = round(BAR_CELLS * left / max(units, 1))
    text = Text("stock     ", style="bold")
    text.append("█" * cells, style="green" if left > units // 5 else "yellow")
    text.append("░" * (BAR_CELLS - cells), style="bright_black")
    text.append(f"  {left:,} left", style="bold")
    return text


def _rates(rates: RateSeries) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, style in (("accepted", "green"), ("refused", "yellow"), ("ended", "cyan")):
        values = rates.series.get(name, [0])
        rate = sum(values[-3:-1]) / (2 * BUCKET_S) if len(values) > 2 else values[-1] / BUCKET_S
        spark = Text(sparkline(values).rjust(SPARKS_SHOWN), style=style)
        table.add_row(Text(name, style="bold"), spark, f"{rate:7,.0f} a second")
    return table


def _funnel(tally: SaleTally) -> Table:
    table = Table.grid(padding=(0, 1))
    confirmed, declined = tally.with_status(Status.CONFIRMED), tally.with_status(Status.PAYMENT_FAILED)
    rows = [
        ("clicks", tally.clients.requests, ""),
        ("accepted", tally.accepted, "green"),
        ("  under way", tally.unended, "cyan"),
        ("  confirmed", confirmed, "bold green"),
        ("  declined", declined, "yellow"),
        ("  unknown yet", tally.with_status(Status.NEEDS_RECONCILIATION), "red"),
        ("sold out", tally.refused["sold_out"], "yellow"),
    ]
    for name, count, style in rows:
        table.add_row(name, Text(f"{count:>8,}", style=style))
    return table


def _delays(tally: SaleTally) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_row("", *(Text(f"p{percent}", style="bright_black") for percent in (50, 95, 99)))
    for name, values in (
        ("click to 202", tally.clients.accepted_ms),
        ("202 to the end", tally.clients.completed_ms),
        ("of it our own", tally.own_delay_ms),
    ):
        table.add_row(name, *map(milliseconds, at(values).values()))
    return table


def _members(members: Sequence[ProcessRow]) -> Text:
    counts = Counter(member["role"] for member in members)
    text = Text("running   ", style="bold")
    for role, count in sorted(counts.items()):
        text.append(f"{role}{f' x{count}' if count > 1 else ''}   ", style="bright_black")
    return text


def _panel(title: str, content: RenderableType) -> Panel:
    return Panel(content, title=title, title_align="left", box=box.SIMPLE, padding=(0, 1))
