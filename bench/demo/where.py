"""Where the time of an order went: its parts, from the click until its buyer saw the end, as numbers and as a bar.

All clocks are those of one machine. The parts of an order add up to its whole time: a part that began before the buyer had the
202, or before another part ended, counts from there.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.tally import Followed

from .sale_tally import LoggedOrder, SaleTally, at, milliseconds

BAR_CELLS = 72


class Part(NamedTuple):
    key: str
    what: str
    mark: str
    style: str


CHARGE = Part("charge", "charge: the provider's time", "░", "bright_black")
PARTS = (
    Part("reserve_and_publish", "reserve and publish: click to 202", "█", "green"),
    Part("order_stage", "order stage: to stored", "▓", "cyan"),
    Part("payment_queue", "payment queue: to the charge", "█", "blue"),
    CHARGE,
    Part("settle", "settle: answer to the end on the log", "▓", "magenta"),
    Part("projector", "projector: to the end as shown", "█", "yellow"),
)


def times_ms(tally: SaleTally) -> dict[str, list[float]]:
    """By part, of the followed orders that were charged."""
    found: dict[str, list[float]] = {part.key: [] for part in PARTS}
    for followed in tally.clients.followed:
        moments = _moments(followed, tally.log.get(followed.order))
        for part, (before, after) in zip(PARTS, pairwise(moments), strict=False):
            found[part.key].append(after - before)
    return found


def _moments(followed: Followed, logged: LoggedOrder | None) -> list[float]:
    """The ends of all parts in order, after the click; empty if one is unknown."""
    if logged is None:
        return []
    of_log = (logged.stored_ms, logged.started_ms, logged.answered_ms, logged.ended_ms)
    moments = [followed.clicked_ms]
    for moment in (followed.accepted_ms, *of_log, followed.ended_ms):
        if moment is None:
            return []
        moments.append(max(moments[-1], moment))
    return moments


def after_answer_ms(orders: Iterable[LoggedOrder]) -> dict[str, int | None]:
    """How late orders ended after the provider's answer: the latest, and the last end after the last answer."""
    pairs = [(order.ended_ms, order.answered_ms) for order in orders if order.ended_ms and order.answered_ms]
    if not pairs:
        return {"latest_end_after_its_answer": None, "last_end_after_the_last_answer": None}
    ends, answers = zip(*pairs, strict=True)
    return {
        "latest_end_after_its_answer": max(end - answer for end, answer in pairs),
        "last_end_after_the_last_answer": max(ends) - max(answers),
    }


def where_ms(tally: SaleTally) -> dict[str, Any]:
    """As JSON says it."""
    parts = times_ms(tally)
    spreads = {key: {"p50": at(values)[50], "p95": at(values)[95]} for key, values in parts.items()}
    return {**spreads, "orders": len(parts[CHARGE.key]), **after_answer_ms(tally.log.values())}


def where(tally: SaleTally) -> RenderableType:
    """As people see it: the medians as a bar, and each part's median and p95."""
    parts = times_ms(tally)
    middle = {key: at(values)[50] or 0.0 for key, values in parts.items()}
    whole = sum(middle.values()) or 1.0
    bar, table = Text("  "), Table.grid(padding=(0, 2))
    table.add_row("", Text("part"), Text("median", justify="right"), Text("p95", justify="right"))
    for part in PARTS:
        cells = max(1, round(BAR_CELLS * middle[part.key] / whole)) if parts[part.key] else 0
        bar.append(part.mark * cells, style=part.style)
        spread = at(parts[part.key])
        numbers = (Text(milliseconds(spread[percent]), justify="right") for percent in (50, 95))
        table.add_row(Text(f"  {part.mark}", style=part.style), part.what, *numbers)
    late = after_answer_ms(tally.log.values())
    return Group(
        Text(f"Where the time of an order went ({len(parts[CHARGE.key])} orders, followed by their buyers)"),
        bar,
        table,
        Text(f"  last end after the last charge's answer: {milliseconds(late['last_end_after_the_last_answer'])}"),
        Text(f"  latest end after its charge's answer:    {milliseconds(late['latest_end_after_its_answer'])}"),
    )
