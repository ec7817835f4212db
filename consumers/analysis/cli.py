"""The commands `sql`, `prove`, `rewind` and `report`, which analyse the log."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consumers.replay.cli import From, To, exit_with
from consumers.replay.when import Bound
from infra import options
from infra.commands import Json, fail, run_command
from infra.commands import report as print_report
from infra.servers import Server

if TYPE_CHECKING:
    import duckdb

app = typer.Typer(no_args_is_help=True)

Data = Annotated[
    list[Path] | None,
    typer.Option("--data", help="Files or directories that `thrones replay` wrote. Default: read the topics."),
]
OneProduct = Annotated[
    int | None,
    typer.Option("--product", min=1, max=options.LARGEST_INTEGER, metavar="ID", help="Only this product."),
]


@app.command()
def sql(
    query: Annotated[str | None, typer.Argument(help="SQL statements. Default: read them from standard input.")] = None,
    data: Data = None,
    start: From = None,
    end: To = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print all rows as CSV.")] = False,
    as_json: Json = False,
) -> None:
    """Query the log in SQL (DuckDB). Views: orders, payments, order_history, products, stock_timeline, funnel, events; see docs/data.md.

    Example: thrones sql "SELECT status, count(*) FROM orders GROUP BY status" --data sale.parquet
    """
    from . import answers

    render = answers.as_json if as_json else answers.as_csv if as_csv else answers.as_table
    with _lake(data, start, end, quiet=as_json or as_csv) as lake:
        for statement in [query] if query is not None else _statements():
            try:
                for answer in answers.ask(lake, statement):
                    typer.echo(render(answer))
            except answers.QueryError as error:
                if query is not None or not sys.stdin.isatty():
                    fail(str(error))
                typer.echo(str(error), err=True)


@contextmanager
def _lake(
    data: list[Path] | None, start: Bound | None, end: Bound | None, *, quiet: bool
) -> "Iterator[duckdb.DuckDBPyConnection]":
    """Opens the views over files, or over the topics as they are now. Exits with 1 if they cannot be read."""
    from consumers.replay.reader import ReplayError
    from consumers.replay.show import show_progress
    from infra.settings import get_settings

    from .lake import open_lake, replay_into, temporary_events

    if data and (start or end):
        raise typer.BadParameter(
            "it applies to topics only; with --data filter in SQL: WHERE appended_at >= ...", param_hint="--from, --to"
        )
    try:
        if data:
            yield open_lake(data)
            return
        with temporary_events() as path:
            with show_progress(quiet=quiet) as say:
                run_command(lambda: replay_into(get_settings(), path, start, end, say), asks=[Server.KAFKA])
            yield open_lake([path])
    except ReplayError as error:
        exit_with(error)


def _statements() -> Iterator[str]:
    """Reads statements from standard input; each ends with a semicolon or with the input."""
    if sys.stdin.isatty():
        import readline  # noqa: F401 - gives input() a history

        typer.echo(
            "statements end with ; - views: orders payments products order_history stock_timeline funnel events",
            err=True,
        )
    text = ""
    while (line := _next_line("thrones> " if not text else "     ... ")) is not None:
        text += line + "\n"
        if text.rstrip().endswith(";"):
            yield text
            text = ""
    if text.strip():
        yield text


def _next_line(prompt: str) -> str | None:
    try:
        return input(prompt if sys.stdin.isatty() else "")
    except (EOFError, KeyboardInterrupt):
        return None


@app.command()
def prove(product: Annotated[int, typer.Argument(min=1, max=options.LARGEST_INTEGER)], as_json: Json = False) -> None:
    """Prove from the log alone, without any store, that a product was never oversold. Exit 0 only if it is proved.

    Example: thrones prove 1
    """
    from infra.settings import get_settings
    from schemas.ids import ProductId

    from . import proof

    try:
        found = run_command(lambda: proof.prove(get_settings(), ProductId(product)), asks=[Server.KAFKA])
    except proof.NoSuchProduct as error:
        fail(str(error))
    print_report(found, proof.show(found), as_json)
    raise typer.Exit(0 if found.proved else 1)


@app.command()
def rewind(
    product: OneProduct = None,
    as_json: Json = False,
) -> None:
    """Replay the log into a temporary database and compare it with the live one. Exit 0 only if they are equal.

    Example: thrones rewind
    """
    from consumers.replay.reader import ReplayError
    from consumers.replay.show import show_progress
    from infra.settings import get_settings

    from . import rewind as rewinding

    try:
        with show_progress(quiet=as_json) as say:
            found = run_command(
                lambda: rewinding.rewind(get_settings(), product, say), asks=[Server.KAFKA, Server.POSTGRES]
            )
    except (ReplayError, rewinding.RewindImpossible) as error:
        fail(str(error))
    print_report(found, rewinding.show(found), as_json)
    raise typer.Exit(0 if found.equal else 1)


@app.command()
def report(
    out: Annotated[Path, typer.Option("--out", help="The HTML page to write; PNGs of its pictures go beside it.")],
    product: OneProduct = None,
    data: Data = None,
    client_log: Annotated[
        Path | None,
        typer.Option(
            "--client-log",
            exists=True,
            dir_okay=False,
            help="A client log of a load test; adds refused requests to the page.",
        ),
    ] = None,
    start: From = None,
    end: To = None,
    force: Annotated[bool, typer.Option("--force", help="Replace existing files.")] = False,
    as_json: Json = False,
) -> None:
    """Draw a sale on one self-contained page: stock, orders per second, delays by step, funnel.

    Example: thrones report --out sale.html --data sale.parquet
    """
    from consumers.replay.reader import ReplayError

    from . import report as reporting
    from .lake import load_client_log

    try:
        reporting.check_place(out, force=force)
        with _lake(data, start, end, quiet=as_json) as lake:
            if client_log is not None:
                load_client_log(lake, client_log)
            made = reporting.make_report(lake, product)
            files = reporting.write(made, out, force=force)
    except ReplayError as error:
        exit_with(error)
    if made.left_out:
        typer.echo(made.left_out, err=True)
    written = [str(file) for file in files]
    print_report(written, "\n".join(written), as_json)
