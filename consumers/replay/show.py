"""Shows the progress of a replay on standard error: a bar in a terminal, else a line every few seconds."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .reader import ReadProgress
from .replay import Say

LINE_INTERVAL_S = 5.0


@contextmanager
def show_progress(*, quiet: bool = False) -> Iterator[Say | None]:
    """`quiet` shows nothing."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with _bar() as say:
            yield say
    else:
        yield _lines()


@contextmanager
def _bar() -> Iterator[Say]:
    from rich import progress as rich_progress
    from rich.console import Console

    columns = (
        rich_progress.TextColumn("replaying"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("replaying", total=None)
        yield lambda progress: bar.update(task, total=progress.total, completed=progress.done)


def _lines() -> Say:
    started = said = time.monotonic()

    def say(progress: ReadProgress) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= LINE_INTERVAL_S:
            said = now
            pace = progress.done / (now - started)
            print(f"{progress.done} of {progress.total} records, {pace:,.0f}/s", file=sys.stderr, flush=True)

    return say
