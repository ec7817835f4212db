"""One command measures everything on a separate stack: every figure with its goal, as JSON, plots and pages.

    python -m bench.performance run bench              make bench: also rewrites docs/performance.md, its details and docs/capacity.md
    python -m bench.performance run quick              make bench-quick: printed only
    python -m bench.performance run bench --only burst --only micro
    python -m bench.performance pages                  only rewrites the pages from the JSON

Exit 0 if everything was measured and all books balance, even if goals are missed; else 1.
"""

import asyncio
import logging
import resource
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import structlog
import typer

from infra.commands import Commands
from infra.supervision.place import REPOSITORY

from .report import Report, read, write
from .run import NAMES, run
from .size import SIZES

FOLDER = REPOSITORY / "docs" / "performance"
STATE_DIR = REPOSITORY / ".thrones-bench"
QUICK_FOLDER = REPOSITORY / ".thrones-bench-quick"
JSON = "performance.json"

app = typer.Typer(cls=Commands, add_completion=False, pretty_exceptions_enable=False, help=__doc__)


class SizeName(StrEnum):
    """The sizes; a test keeps them equal to SIZES."""

    QUICK = "quick"
    BENCH = "bench"
    FULL = "full"


@app.command("run")
def measure(
    size: SizeName,
    only: Annotated[list[str] | None, typer.Option("--only", help=f"Only these: {', '.join(NAMES)}.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for JSON and plots; the pages stay as they are.")
    ] = None,
) -> None:
    """Measure. Only a complete run of `bench` or `full` rewrites the docs."""
    if unknown := set(only or ()) - set(NAMES):
        raise typer.BadParameter(f"no measure is called {', '.join(sorted(unknown))}")
    _prepare()
    report = asyncio.run(run(SIZES[size.value], STATE_DIR, frozenset(only or ())))
    partial = bool(only or out or size is SizeName.QUICK)
    folder = out or (QUICK_FOLDER if partial else FOLDER)
    write(report, folder / JSON)
    _draw(report, folder)
    if not partial:
        _write_pages(report)
    typer.echo(_summary(report, folder))
    raise typer.Exit(0 if report.sound else 1)


@app.command()
def pages() -> None:
    """Rewrite docs/performance.md, its details, docs/capacity.md and the plots from docs/performance/performance.json."""
    report = read(FOLDER / JSON)
    _draw(report, FOLDER)
    _write_pages(report)


def _prepare() -> None:
    """Silence the log lines of rebuilds, and raise the limit of open files."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _draw(report: Report, folder: Path) -> None:
    from .plots import draw  # matplotlib takes a second to import, and needs a place for its cache

    draw(report, folder)


def _write_pages(report: Report) -> None:
    from bench.capacity import tables as capacity_tables

    from .page import details, summary
    from .table import put_generated

    put_generated(REPOSITORY / "docs" / "performance.md", summary(report))
    put_generated(REPOSITORY / "docs" / "performance-details.md", details(report))
    put_generated(REPOSITORY / "docs" / "capacity.md", capacity_tables(report))


def _summary(report: Report, folder: Path) -> str:
    from .page import tables

    return f"{tables(report)}\n\n{report.seconds:,.0f} s; {folder}"


if __name__ == "__main__":
    app()
