"""Makes the generated parts of docs/performance.md and docs/performance-details.md from a report. Pure."""

from collections.abc import Iterable, Mapping, Sequence

from bench.tally import Percentiles

from . import cpu
from .figures import GOALS, shown, verdict
from .limits import LIMITS, limit_of, orders_per_s
from .report import BacklogPoint, CpuTable, GeneratorNote, Report
from .table import table

ROLES = (
    "gateway",
    "order-stage",
    "payment-stage",
    "projector",
    "relay",
    "reconciler",
    "supervisor",
    "kafka",
    "redis",
    "postgres",
)


def tables(report: Report) -> str:
    """All of it, as `make bench-quick` prints it."""
    return f"{summary(report)}\n\n{details(report)}"


def summary(report: Report) -> str:
    """What docs/performance.md shows: machine, figures beside their goals, delays, books."""
    return _joined(
        _made_on(report),
        _figures(report),
        _section("### What this machine can do today", _limits(report.limits)),
        _section("### Delays, ms", _latencies(report.latencies)),
        _books(report),
        *(f"NOT MEASURED: {failure}" for failure in report.failures),
    )


def details(report: Report) -> str:
    """What docs/performance-details.md shows: what each figure is made of."""
    return _joined(
        _section("## CPU an order, ms", _cpu(report.cpu)),
        _section("## Growth by members", _members(report)),
        _section("## Growth by backlog", _backlogs(report.backlogs)),
        _section("## Microbenchmarks", _micro(report)),
        _section("## The load generator itself", _generators(report.generators)),
        _section("## Other values", table(("What", "Value"), ((k, shown(v)) for k, v in report.notes.items()))),
    )


def _joined(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)


def _made_on(report: Report) -> str:
    card = report.card
    if card is None:
        return "No stack came up."
    changed = " with uncommitted changes" if card.uncommitted else ""
    warning = "\n\n**The machine was not quiet: only CPU an order can be believed.**" if not card.quiet else ""
    return (
        f"Commit `{card.commit}`{changed}, {card.at}, {report.seconds / 60:.0f} minutes (`{report.size}`)."
        f" {card}; {card.system}, Python {card.python}.{warning}"
    )


def _figures(report: Report) -> str:
    """All goals, including those that were not measured."""
    rows = []
    for key, goal in GOALS.items():
        bound = f"{'>=' if goal.at_least else '<='} {shown(goal.bound)} {goal.unit}".strip()
        figure, word = report.figures.get(key), verdict(key, report.figures)
        if figure is None:
            rows.append((goal.what, bound, "-", "-", "-", word))
            continue
        said = f"**{word}**" if word == "missed" else word
        share = _share(figure.median, limit_of(key, report.limits))
        rows.append((goal.what, bound, shown(figure.median), share, _from_to(figure.values), said))
    return table(("Figure", "Goal", "Median", "Of its limit", "From to (runs)", "Goal is"), rows)


def _share(value: float, limit: float | None) -> str:
    return f"{value / limit:.0%}" if limit else "-"


def _limits(limits: Mapping[str, float]) -> str:
    rows = []
    for name, limit in LIMITS.items():
        if name in limits:
            orders = orders_per_s(name, limits[name])
            needed = str(limit.an_order) if limit.an_order else "-"
            rows.append((limit.what, shown(limits[name]), needed, shown(orders) if orders else "-"))
    return table(("Part, alone", "A second", "An order needs", "Enough for orders/s"), rows)


def _from_to(values: Sequence[float]) -> str:
    return f"{shown(min(values))} to {shown(max(values))} ({len(values)})" if len(values) > 1 else "-"


def _latencies(latencies: dict[str, Percentiles]) -> str:
    rows = (
        (what, shown(s.p50), shown(s.p95), shown(s.p99), shown(s.max), f"{s.count:,}") for what, s in latencies.items()
    )
    return table(("What", "p50", "p95", "p99", "max", "Count"), rows)


def _cpu(found: dict[str, CpuTable]) -> str:
    columns = list(found)
    rows = [(role, *(_ms(found[name].ms_per_order, role) for name in columns)) for role in ROLES]
    rows.append(("**sum**", *(f"**{cpu.system_sum(found[name].ms_per_order):.2f}**" for name in columns)))
    rows.append(
        ("apart: mock payment gateway", *(_ms(found[name].ms_per_order, "payment-gateway") for name in columns))
    )
    rows.append(("orders ended", *(f"{found[name].ended:,}" for name in columns)))
    rows.append(("orders accepted", *(f"{found[name].accepted:,}" for name in columns)))
    return table(("Process", *columns), rows) if found else ""


def _ms(by_role: dict[str, float], role: str) -> str:
    return f"{by_role[role]:.3f}" if role in by_role else "-"


def _members(report: Report) -> str:
    alone = {point.stage: point.median_per_s for point in report.members if point.members == 1}
    rows = (
        (
            p.stage,
            str(p.members),
            f"{p.share:.0%}",
            shown(p.median_per_s),
            _from_to(p.per_s),
            f"{p.median_per_s / alone[p.stage]:.2f}",
        )
        for p in report.members
    )
    head = ("Stage", "Members", "Of a core each", "Orders/s, median", "From to (runs)", "Times one's")
    return table(head, rows)


def _backlogs(points: Sequence[BacklogPoint]) -> str:
    rows = (
        (f"{p.orders:,}", shown(p.per_s), f"{cpu.system_sum(p.ms_per_order):.2f}", shown(p.idle_ms_per_s))
        for p in points
    )
    return table(("Backlog, all held", "Drained/s", "CPU an order, ms", "CPU while it lies there, ms/s"), rows)


def _micro(report: Report) -> str:
    rows = ((m.what, f"{m.us:.2f}", f"{m.least_us:.2f} to {m.most_us:.2f}") for m in report.micro)
    return table(("Operation", "µs, median", "From to"), rows)


def _generators(notes: Iterable[GeneratorNote]) -> str:
    rows = (
        (
            note.run,
            shown(note.offered_per_s),
            shown(note.answered_per_s),
            shown(note.late_p99_ms),
            f"{note.cpu_share:.0%} x {note.processes}",
            ", ".join(f"{count:,} x {answer}" for answer, count in note.answers.items()),
        )
        for note in notes
    )
    return table(("Run", "Offered/s", "Answered/s", "Late p99, ms", "CPU of a core", "Answers"), rows)


def _books(report: Report) -> str:
    bad = [f"{note.run}: {'; '.join(note.problems)}" for note in report.books if not note.balance]
    orders = sum(note.orders for note in report.books)
    if bad:
        return "THE BOOKS DO NOT BALANCE: " + "; ".join(bad)
    return f"The books balance after each of {len(report.books)} runs, {orders:,} orders in all (`thrones audit`)."


def _section(title: str, rows: str) -> str:
    return f"{title}\n\n{rows}" if rows else ""
