"""The commands of this room: `audit`, `lag`, `autoscale`, and those of analysts, which have modules of their own."""

from pathlib import Path
from typing import Annotated

import typer

from consumers.analysis.cli import app as analysis_app
from consumers.dead_letters.cli import app as dlq_app
from consumers.incidents.cli import app as incident_app
from consumers.replay.cli import app as replay_app
from infra import options
from infra.commands import Json, fail, report, run_command
from infra.servers import Server
from schemas.topics import StageName

app = typer.Typer(no_args_is_help=True)
app.add_typer(replay_app)
app.add_typer(analysis_app)
app.add_typer(dlq_app, name="dlq")
app.add_typer(incident_app, name="incident")


@app.command()
def audit(
    product: Annotated[
        int | None, typer.Option("--product", min=1, max=options.LARGEST_INTEGER, help="Only this one.", metavar="ID")
    ] = None,
    wait: Annotated[
        float, typer.Option("--wait", min=0, max=86_400, help="How long to wait for quiet, in seconds.")
    ] = 60.0,
    client_log: Annotated[
        Path | None,
        typer.Option(
            "--client-log", exists=True, help="What all clients of these products saw, as bench.buyers logs it."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare all books: Redis, Postgres, the log from its beginning, the provider's ledger. Exit 0 if they balance.

    Waits until nothing is under way: no lag, no held entry, every order ended; else says what is not.

    Example: thrones audit --product 1 --wait 60 --json
    """
    import msgspec

    from consumers.audit import audit as auditing
    from consumers.audit.balance import AuditReport
    from consumers.audit.client_log import read_client_log
    from consumers.audit.show import show
    from infra.settings import get_settings
    from schemas.ids import ProductId

    async def main() -> AuditReport:
        seen = read_client_log(client_log, product) if client_log else None
        return await auditing.audit(get_settings(), ProductId(product) if product else None, wait, seen)

    try:
        result = run_command(main)
    except msgspec.DecodeError as error:
        fail(f"--client-log: {error}")
    report(result, show(result), as_json)
    raise typer.Exit(0 if result.ok else 1)


@app.command()
def lag(
    live: Annotated[
        bool, typer.Option("--live", "-f", help="Repeat, with drain times and members; Ctrl-C ends it.")
    ] = False,
    every: Annotated[float, typer.Option("--every", min=0.2, max=3600, help="Seconds between two checks.")] = 2.0,
    looks: Annotated[
        int, typer.Option("--looks", min=0, max=1_000_000_000, help="Number of checks; 0: without end.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Show the lag of each consumer group, by partition: the records that it has still to process.

    --live adds the rate of change, the time until the lag is zero, and the partitions of each member.

    Example: thrones lag --live
    """
    from consumers.lag import GroupLag, read_lags, show, show_live, watch
    from infra.settings import get_settings

    if not live:
        by_group = run_command(lambda: read_lags(get_settings()), asks=[Server.KAFKA])
        report(by_group, show(by_group), as_json)
        return

    def print_lags(groups: list[GroupLag]) -> None:
        report(groups, show_live(groups) + "\n", as_json)

    async def main() -> None:
        seen = 0
        async for groups in watch(get_settings(), every):
            print_lags(groups)
            seen += 1
            if seen == looks:
                return

    run_command(main, asks=[Server.KAFKA])


@app.command()
def autoscale(
    stages: Annotated[
        list[StageName] | None, typer.Argument(metavar="STAGE...", help="order-stage, payment-stage; else both.")
    ] = None,
    every: Annotated[float, typer.Option("--every", min=0.2, max=3600, help="Seconds between two checks.")] = 5.0,
    looks: Annotated[
        int, typer.Option("--looks", min=0, max=1_000_000_000, help="Number of checks; 0: without end.")
    ] = 0,
    lag_per_member: Annotated[
        int | None,
        typer.Option("--lag-per-member", min=1, max=1_000_000_000, help="Records of lag per member."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.")] = False,
    as_json: Json = False,
) -> None:
    """Scale the members of a stage by its lag: up at once, down after a quiet minute, never more than partitions.

    Runs beside the local stack until Ctrl-C, one line per check. In Kubernetes infra/deploy/k8s/autoscale.yaml does the same.

    Example: thrones autoscale payment-stage --lag-per-member 5000
    """
    from consumers import autoscale as autoscaling
    from infra.settings import get_settings

    async def main() -> None:
        chosen = list(dict.fromkeys(stages or StageName))
        seen = 0
        looking = autoscaling.autoscale(
            get_settings(), chosen, every_s=every, per_member=lag_per_member, dry_run=dry_run
        )
        async for look in looking:
            report(look, autoscaling.show(look), as_json)
            seen += 1
            if seen == looks * len(chosen) and looks:
                return

    run_command(main, asks=[])  # it keeps running while Kafka is down
