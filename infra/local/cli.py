"""The local stack's commands: `setup`, `up`, `down`, `reset`, `status`, `env`, `logs`, `doctor`.

Every process imports this module when it starts, so each command imports what it needs inside its function.
"""

import asyncio
import json
import logging
import time
from typing import Annotated

import typer

from infra.commands import Json, fail
from infra.local.config import load_config
from infra.supervision import registry
from infra.supervision.place import default_state_dir
from infra.supervision.ports import StackError
from schemas.topics import StageName

app = typer.Typer(no_args_is_help=True, help="The local stack: real servers and every process, without Docker.")


@app.command(rich_help_panel="Local stack")
def setup() -> None:
    """Download Kafka's jars and prepare its fast start. Does nothing if both are there.

    Example: thrones setup
    """
    import structlog

    from infra.local.fast_start import make_fast_start
    from infra.local.jars import fetch_kafka

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    try:
        fetch_kafka(typer.echo)
        make_fast_start(typer.echo)
    except StackError as error:
        fail(str(error))


@app.command(rich_help_panel="Local stack")
def up(
    servers_only: Annotated[bool, typer.Option("--servers-only", help="Kafka, Redis and Postgres only.")] = False,
) -> None:
    """Start everything in the background; returns when it is ready. On a running stack it only checks that.

    Sizes and ports come from the environment: API_WORKERS ORDER_WORKERS PAYMENT_WORKERS BROKERS PORT (0: a free one).

    Example: PORT=8081 API_WORKERS=4 thrones up
    """
    from infra.local.readiness import wait_ready
    from infra.local.stack import start

    state_dir = default_state_dir()
    started = time.monotonic()

    def say(text: str) -> None:
        typer.echo(f"{time.monotonic() - started:5.1f} s  {text}")

    try:
        start(state_dir, servers_only=servers_only, say=say)
        config = load_config(state_dir)
        if config and not servers_only:
            asyncio.run(wait_ready(config, state_dir, say))
            say(f"ready: http://127.0.0.1:{config.port}  (`thrones status`, `thrones env`, `thrones logs -f`)")
        else:
            say("the servers are up: `thrones env` shows their addresses")
    except StackError as error:
        fail(str(error))


@app.command(rich_help_panel="Local stack")
def down() -> None:
    """Stop everything and keep the state. Succeeds if nothing runs.

    Example: thrones down
    """
    from infra.local.stack import stop

    stop(default_state_dir(), typer.echo)


@app.command(rich_help_panel="Local stack")
def reset() -> None:
    """Stop everything and delete all state (orders, stock, logs) without asking. Downloads are kept.

    Example: thrones reset
    """
    from infra.local.stack import reset as delete

    delete(default_state_dir(), typer.echo)


@app.command(rich_help_panel="Local stack")
def status(as_json: Json = False) -> None:
    """Show the running processes: role, member, pid and port.

    Example: thrones status --json
    """
    from rich.console import Console
    from rich.table import Table

    rows = registry.live_rows(default_state_dir())
    if as_json:
        typer.echo(json.dumps(rows))
        return
    if not rows:
        typer.echo("nothing runs; start it with `make up`")
        return
    table = Table("role", "member", "pid", "port", box=None)
    for row in rows:
        table.add_row(row["role"], row["member"], str(row["pid"]), str(row["port"] or "-"))
    Console().print(table)


@app.command(rich_help_panel="Local stack")
def scale(
    stage: Annotated[StageName, typer.Argument(metavar="STAGE", help="order-stage or payment-stage.")],
    members: Annotated[int, typer.Argument(metavar="N", min=0, max=32, help="The wanted number of members.")],
    as_json: Json = False,
) -> None:
    """Add or remove members of a stage while the stack runs; returns when they run. Lasts until `make down`.

    Example: thrones scale payment-stage 4
    """
    from infra.supervision.scaling import scale as resize
    from infra.supervision.scaling import scaling_warning

    try:
        rows = resize(default_state_dir(), stage, members)
    except StackError as error:
        fail(str(error))
    warning = scaling_warning(stage, members)
    if as_json:
        typer.echo(json.dumps({"stage": stage, "members": rows, "remark": warning or None}))
        return
    typer.echo(f"{stage}: {len(rows)} member(s) run" + (f"; {warning}" if warning else ""))


@app.command(rich_help_panel="Local stack")
def env(as_json: Json = False) -> None:
    """Print the addresses of the stack's servers as KEY=value lines for outside tools.

    Example: set -a; eval "$(thrones env)"; set +a
    """
    from infra.local.specs import stack_env

    config = load_config(default_state_dir())
    if config is None:
        fail("there is no stack here; start one with `make up`")
    values = stack_env(config)
    typer.echo(json.dumps(values) if as_json else "\n".join(f"{key}={value}" for key, value in values.items()))


@app.command(rich_help_panel="Local stack")
def logs(
    role: Annotated[str | None, typer.Argument(help="A role or one member: kafka, order-stage, gateway-2.")] = None,
    following: Annotated[bool, typer.Option("--follow", "-f", help="Continue with new lines.")] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, max=100_000, help="Lines of each log to show first.")
    ] = 20,
) -> None:
    """Show the logs of the processes.

    Example: thrones logs order-stage -f
    """
    from infra.local.follow import follow, last_lines, log_files

    state_dir = default_state_dir()
    files = log_files(state_dir, role)
    if not files:
        known = ", ".join(sorted({log.stem.rpartition("-")[0] for log in log_files(state_dir, None)}))
        fail(f"no log of {role or 'any process'}; there are: {known or 'none'}")
    for line in last_lines(files, lines):
        typer.echo(line)
    try:
        if following:
            for line in follow(files):
                typer.echo(line)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


@app.command(rich_help_panel="Local stack")
def doctor(as_json: Json = False) -> None:
    """Check the machine, the downloads and the running servers' settings, and say what to do. Changes nothing.

    Example: thrones doctor
    """
    from infra.local.doctor import examine

    findings = examine(default_state_dir())
    if as_json:
        typer.echo(json.dumps([finding._asdict() for finding in findings]))
    else:
        for finding in findings:
            typer.echo(f"{'ok  ' if finding.ok else 'BAD '} {finding.what}: {finding.detail}")
            if not finding.ok and finding.remedy:
                typer.echo(f"     -> {finding.remedy}")
    raise typer.Exit(0 if all(finding.ok for finding in findings) else 1)
