"""Draws three small PNGs from a report: throughput, delays, growth."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

from . import cpu
from .figures import GOALS
from .report import Report

mpl.use("Agg")
from matplotlib import pyplot as plt

SIZE_IN = (8.0, 3.6)
DPI = 80
BLUE, ORANGE, GREY = "#2b6cb0", "#c05621", "#a0aec0"

Draw = Callable[[Any, Any, Report], None]


def draw(report: Report, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    plots: dict[str, Draw] = {"throughput": _throughput, "delays": _delays, "growth": _growth}
    for name, fill in plots.items():
        figure, (left, right) = plt.subplots(1, 2, figsize=SIZE_IN, dpi=DPI, layout="constrained")
        fill(left, right, report)
        figure.savefig(folder / f"{name}.png", metadata={"Software": None})
        plt.close(figure)


def _throughput(left: Any, right: Any, report: Report) -> None:
    keys = [key for key in ("burst_accepted", "sustained") if key in report.figures]
    names = {"burst_accepted": "accepted in a burst", "sustained": "ended, sustained"}
    for place, key in enumerate(keys):
        figure = report.figures[key]
        left.bar(place - 0.2, figure.median, 0.38, color=BLUE, label=None if place else "measured")
        left.plot([place - 0.2] * len(figure.values), figure.values, "k.", markersize=4)
        left.bar(place + 0.2, GOALS[key].bound, 0.38, color=GREY, label=None if place else "goal")
    left.set(title="Orders a second", xticks=range(len(keys)), xticklabels=[names[key] for key in keys])
    if keys:
        left.legend()
    times = [sample.at_s for sample in report.burst]
    right.plot(times, [sample.accepted for sample in report.burst], color=BLUE, label="accepted")
    right.plot(times, [sample.ended for sample in report.burst], color=ORANGE, label="ended")
    right.set(title="First burst, and the backlog it leaves", xlabel="seconds", ylabel="orders")
    right.legend()


def _delays(left: Any, right: Any, report: Report) -> None:
    _percentiles(left, report, [name for name in report.latencies if name.startswith(("acknowledgement", "own"))])
    left.set(title="Acknowledgement and own delay, ms")
    _percentiles(right, report, [name for name in report.latencies if name.startswith(("refusal", "stock"))])
    right.set(title="Refusals and the stock stream, ms")


def _percentiles(axes: Any, report: Report, names: list[str]) -> None:
    for number, (percentile, color) in enumerate((("p50", BLUE), ("p95", ORANGE), ("p99", GREY))):
        values = [max(getattr(report.latencies[name], percentile), 0.1) for name in names]
        axes.barh([row + 0.25 * (number - 1) for row in range(len(names))], values, 0.25, color=color, label=percentile)
    axes.set(yticks=range(len(names)), xscale="log")
    axes.set_yticklabels([name.replace(", ", ",\n").replace(" at ", "\nat ") for name in names], fontsize=7)
    axes.invert_yaxis()
    if names:
        axes.legend()


def _growth(left: Any, right: Any, report: Report) -> None:
    for stage in dict.fromkeys(point.stage for point in report.members):
        points = [point for point in report.members if point.stage == stage]
        alone = points[0].median_per_s
        left.plot([p.members for p in points], [p.median_per_s / alone for p in points], "o-", label=stage)
    most = max((point.members for point in report.members), default=1)
    left.plot([1, most], [1, most], "--", color=GREY, label="linear")
    left.set(title="Orders/s by members, times one's", xlabel="members")
    left.legend()
    costs = [cpu.system_sum(point.ms_per_order) for point in report.backlogs]
    right.plot([point.orders for point in report.backlogs], costs, "o-", color=BLUE)
    right.set(title="CPU an order by backlog, ms", xlabel="orders held", ylim=(0, 1.5 * max(costs, default=1.0)))
    if report.backlogs:
        right.set_xscale("log")
