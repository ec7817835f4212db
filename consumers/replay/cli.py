"""The command `replay`."""

import sys
from enum import StrEnum
from typing import Annotated, Any, NoReturn

import typer

from infra.commands import Json, fail, raise_file_limit, run_command
from infra.servers import Server

from .when import bound

app = typer.Typer(no_args_is_help=True)

From = Annotated[
    Any,  # Bound | None: typer does not support unions
    typer.Option("--from", parser=bound, metavar="TIME|OFFSET", help="Start here. A time is the broker's append time."),
]
To = Annotated[Any, typer.Option("--to", parser=bound, metavar="TIME|OFFSET", help="Stop before this.")]


class PartitionBy(StrEnum):
    """How files are split into directories."""

    DATE = "date"


@app.command()
def replay(
    topics: Annotated[list[str], typer.Argument(metavar="TOPIC...", help="orders, payments, order-status, ...")],
    start: From = None,
    end: To = None,
    key: Annotated[
        str | None, typer.Option("--key", metavar="ORDER_ID", help="Copy only the records with this key.")
    ] = None,
    out: Annotated[str, typer.Option("--out", help="x.parquet, x.csv or x.jsonl; - is standard output.")] = "-",
    partition_by: Annotated[
        PartitionBy | None, typer.Option("--partition-by", help="Write a directory OUT: topic=.../date=.../.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing OUT.")] = False,
    as_json: Json = False,
) -> None:
    """Copy records of topics into a file. Joins no consumer group and writes to no topic; leaves a complete file or none.

    TIME is like 2026-11-22T12:00:03.250Z (UTC without a zone), 12:00:03.250 (today) or 15m (ago).

    Example: thrones replay orders order-status --from 12:00 --out sale.parquet
    """
    from infra.settings import get_settings

    from .output import STDOUT, OutputClosed, format_of
    from .reader import ReplayError
    from .replay import Request, show
    from .replay import replay as copy
    from .show import show_progress

    try:
        raise_file_limit()  # by date there is one file per day and topic
        format_of(out, partition_by is not None)  # before any server is asked
        request = Request(tuple(topics), out, start, end, key, partition_by is not None, force)
        with show_progress(quiet=as_json) as say:
            summary = run_command(lambda: copy(get_settings(), request, say), asks=[Server.KAFKA])
    except ReplayError as error:
        exit_with(error)
    except OutputClosed:
        _exit_without_error()
    # Standard output carries the rows only.
    typer.echo(_as_json(summary) if as_json else show(summary), err=out == STDOUT or not as_json)


def _as_json(value: object) -> str:
    import msgspec

    return msgspec.json.encode(value).decode()


def exit_with(error: Exception) -> NoReturn:
    """Ends the command: exit 2 for a usage error, exit 1 for anything else."""
    from .reader import InvalidRequest

    if isinstance(error, InvalidRequest):
        raise typer.BadParameter(str(error)) from None
    fail(str(error))


def _exit_without_error() -> None:
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python prints an error at exit
    raise SystemExit(0)
