"""Draws the figures of a report, small enough that their text is readable on a phone."""

import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

SIZE_INCHES = (4.2, 3.0)  # about as many points wide as a phone has pixels
PNG_DPI = 160
SHORTEST_S = 1.0  # a time axis is at least this long
BLUE, ORANGE, GREEN, RED, GREY, PURPLE = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#777777", "#7a5195"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED, GREY)
OF_KIND = {"accepted": BLUE, "confirmed": GREEN, "given back": RED, "refused": GREY}
Point = tuple[float, int]  # seconds since the first order, units on sale


class Unit(NamedTuple):
    """The unit of a time axis."""

    name: str
    seconds: int


UNITS = (Unit("seconds", 1), Unit("minutes", 60), Unit("hours", 3_600), Unit("days", 86_400))
ENOUGH = 3  # an axis of at least this many of a unit uses that unit


def stock(by_product: Mapping[int, Sequence[Point]], last_s: float) -> Figure:
    """Units on sale over time, one line per product."""
    figure, axes = _empty()
    unit = _unit(last_s)
    for colour, (product, points) in zip(COLOURS, by_product.items(), strict=False):
        at = [at_s / unit.seconds for at_s, _ in points]
        available = [units for _, units in points]
        axes.step(at, available, where="post", color=colour, linewidth=1.8, label=f"product {product}")
        if len(by_product) == 1:
            axes.fill_between(at, available, step="post", color=colour, alpha=0.12)
    _time_axis(axes, last_s, unit)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("units on sale")
    if len(by_product) > 1:
        axes.legend(frameon=False)
    return figure


def rates(by_kind: Mapping[str, Sequence[tuple[int, float]]], width_s: int, last_s: float) -> Figure:
    """Orders per second over time, in slices of `width_s`."""
    figure, axes = _empty()
    unit = _unit(last_s)
    last = max((points[-1][0] for points in by_kind.values()), default=0)
    for kind, points in by_kind.items():
        known = dict(points)
        axes.step(
            [n * width_s / unit.seconds for n in range(last + 2)],
            [known.get(n, 0) for n in range(last + 2)],
            where="post",
            color=OF_KIND[kind],
            linewidth=1.8,
            label=kind,
        )
    _time_axis(axes, last_s, unit)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("orders a second")
    if by_kind:
        _legend_above(axes, columns=2)
    return figure


def delays(by_step: Sequence[tuple[str, float, float, float]]) -> Figure:
    """Percentiles of the time from one status to the next, logarithmic: (label, p50, p95, p99) in milliseconds."""
    figure, axes = _empty()
    labels = [label for label, *_ in by_step]
    for n, (_, p50, p95, p99) in enumerate(by_step):
        axes.plot([max(p50, 1), max(p99, 1)], [n, n], color=GREY, linewidth=1.5, zorder=1)
        for value, colour, name in ((p50, BLUE, "p50"), (p95, ORANGE, "p95"), (p99, RED, "p99")):
            axes.scatter([max(value, 1)], [n], color=colour, s=42, zorder=2, label=name if n == 0 else None)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda ms, _: f"{ms / 1000:g} s" if ms >= 1000 else f"{ms:g} ms"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(max(len(labels), 1) - 0.5, -0.5)
    if labels:
        _legend_above(axes, columns=3)
    return figure


def funnel(by_status: Sequence[tuple[str, int]]) -> Figure:
    """Orders that reached each step."""
    figure, axes = _empty()
    labels = [label for label, _ in by_status]
    orders = [count for _, count in by_status]
    bars = axes.barh(labels, orders, color=[_colour(label) for label in labels], height=0.7)
    axes.bar_label(bars, labels=[f"{count:,}" for count in orders], padding=4)
    axes.invert_yaxis()
    axes.set_xlim(right=max(orders, default=1) * 1.18)
    axes.xaxis.set_visible(False)  # each bar is labelled with its count
    axes.spines["bottom"].set_visible(False)
    axes.grid(visible=False)
    return figure


def to_svg(figure: Figure) -> str:
    """The `<svg>` element alone."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def to_png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=PNG_DPI)
    return picture.getvalue()


def _empty() -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    axes = figure.add_subplot()
    axes.grid(visible=True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _unit(last_s: float) -> Unit:
    return next((unit for unit in reversed(UNITS) if last_s >= ENOUGH * unit.seconds), UNITS[0])


def _time_axis(axes: Axes, last_s: float, unit: Unit) -> None:
    """Every picture over time gets the same start, end and unit, so that readers can compare them."""
    axes.set_xlim(0, max(last_s, SHORTEST_S) / unit.seconds)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axes.set_xlabel(f"{unit.name} since the first order")


def _legend_above(axes: Axes, columns: int) -> None:
    """Above the axes, so that the legend hides no data."""
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, borderaxespad=0.2)


def _colour(label: str) -> str:
    if label == "confirmed":
        return GREEN
    return RED if label.endswith("failed") else BLUE
