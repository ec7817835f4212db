"""The commands `dlq list`, `dlq show` and `dlq redrive`."""

import getpass
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

import typer

from infra.cli import Json, fail, report, run_command

app = typer.Typer(no_args_is_help=True, help="Records that could not be processed: what they are, and another try.")

Where = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        metavar="FIELD=TEXT|FIELD~TEXT",
        help="Only those: equal, or containing; may be repeated. letter, topic, partition, offset, reason, key, type, product, user.",
    ),
]
T = TypeVar("T")


@app.command("list")
def list_letters(
    where: Where = None,
    redriven_too: Annotated[bool, typer.Option("--all", help="Also those that were redriven already.")] = False,
    as_json: Json = False,
) -> None:
    """The dead letters, oldest first: where each came from and why it is there.

    Example: thrones dlq list --where topic=orders --where reason~product
    """
    from . import show
    from .letters import conditions, matching

    async def main(settings: Any, pool: Any) -> Any:
        return await matching(settings, pool, conditions(where or []), redriven_too=redriven_too)

    found = _run(main)
    report([show.as_row(letter) for letter in found], show.listing(found), as_json)


@app.command("show")
def show_letter(
    letter: Annotated[str, typer.Argument(metavar="PARTITION:OFFSET", help="As `dlq list` names it.")],
    as_json: Json = False,
) -> None:
    """All of one letter, its record's value included.

    Example: thrones dlq show 1:42
    """
    from . import show
    from .letters import one

    async def main(settings: Any, pool: Any) -> Any:
        return await one(settings, pool, letter)

    found = _run(main)
    report(show.as_page(found), show.page(found), as_json)


@app.command()
def redrive(
    where: Where = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    rate: Annotated[float, typer.Option("--rate", min=0.01, max=10_000, help="Letters a second.")] = 100.0,
    who: Annotated[str, typer.Option("--who", help="Kept with the letter; else the system's name for you.")] = "",
    as_json: Json = False,
) -> None:
    """Send the records of dead letters again, to the topic each came from. A failed order becomes a new order.

    A letter counts as redriven once the broker has acknowledged its record; then it is not sent again. Without --where: all
    that were not redriven. Exit 1 if a letter was refused (it stays in the list).

    Example: thrones dlq redrive --where reason~"not in postgres" --rate 50 --dry-run
    """
    from infra.operations import connected
    from infra.settings import get_settings

    from . import show
    from .letters import conditions, matching
    from .redrive import Fate, Redrive

    async def main(settings: Any, pool: Any) -> list[Fate]:
        from infra.inventory.inventory import Inventory

        letters = await matching(settings, pool, conditions(where or []))
        fates = []
        async with connected(get_settings()) as stores:
            desk = Redrive(settings, pool, Inventory(stores.redis), stores.publisher, who.strip() or getpass.getuser())
            async for fate in desk.run(letters, rate=rate, dry_run=dry_run):
                fates.append(fate)
                if not as_json:
                    typer.echo(show.fate(fate))
        return fates

    fates = _run(main)
    counts = Counter(fate.done for fate in fates)
    told = ", ".join(f"{count} {done}" for done, count in sorted(counts.items())) or "nothing to redrive"
    summary = {"dry_run": dry_run, "letters": len(fates), **counts, "fates": fates}
    report(summary, f"{'would be: ' if dry_run and fates else ''}{told}", as_json)
    raise typer.Exit(1 if counts["refused"] else 0)


def _run(main: Callable[[Any, Any], Awaitable[T]]) -> T:
    from infra.postgres.pool import connect_postgres
    from infra.settings import get_settings

    from .letters import DlqError

    async def with_pool() -> T:
        settings = get_settings()
        pool = await connect_postgres(settings)
        try:
            return await main(settings, pool)
        finally:
            await pool.close()

    try:
        return run_command(with_pool)
    except DlqError as error:
        fail(str(error))
