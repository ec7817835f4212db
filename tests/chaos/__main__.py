"""`python -m tests.chaos [ROW ...] [--seed N] [--seeds K]`: rows of the fault table on a stack of its own; exit 1 on a violation."""

import asyncio
import logging
import tempfile
from pathlib import Path
from typing import Annotated

import structlog
import typer

from .calibrate import calibrate
from .campaign import Campaign
from .ground import Ground
from .results import FILE, append, show
from .rows import Row
from .table import BY_NAME, ROWS

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    names: Annotated[list[str] | None, typer.Argument(metavar="[ROW]...", help="Rows to run; all, without.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the timetable and of the load; the first of --seeds.")] = 1,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="So many seeds a row.")] = 1,
    seconds: Annotated[float | None, typer.Option("--seconds", help="Of faults, instead of the row's own.")] = None,
    rate: Annotated[float | None, typer.Option("--rate", help="L, wishes a second; measured, without.")] = None,
    results: Annotated[Path, typer.Option("--results", help="File that results are appended to.")] = FILE,
    listing: Annotated[bool, typer.Option("--list", help="Name the rows and end.")] = False,
) -> None:
    """Run the fault campaign on a stack of its own, which is deleted afterwards."""
    if listing:
        for row in ROWS:
            typer.echo(f"{row.name:20} {row.fault}")
        return
    if wrong := [name for name in names or [] if name not in BY_NAME]:
        raise typer.BadParameter(f"no row {', '.join(wrong)}; there are: {', '.join(BY_NAME)}")
    _be_quiet()
    chosen = [BY_NAME[name] for name in names] if names else list(ROWS)
    with tempfile.TemporaryDirectory(prefix="thrones-chaos-", ignore_cleanup_errors=True) as folder:
        ground = Ground(Path(folder) / "state", brokers=chosen[0].brokers)
        try:
            ground.up()
            violations = asyncio.run(_run(ground, chosen, range(seed, seed + seeds), seconds, rate, results))
        finally:
            ground.down()
    raise typer.Exit(1 if violations else 0)


def _be_quiet() -> None:
    """Clients that say that a server is away say what is meant to be so."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))


async def _run(
    ground: Ground, rows: list[Row], seeds: range, seconds: float | None, rate: float | None, file: Path
) -> int:
    violations = 0
    campaign = Campaign(ground, rate or await calibrate(ground))
    for row in rows:
        for seed in seeds:
            result, _ = await campaign.run(row, seed, seconds)
            append(result, file)
            print(show(result), flush=True)
            violations += len(result.violations)
    return violations


if __name__ == "__main__":
    app()
