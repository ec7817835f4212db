"""The commands `dlq list`, `dlq show`, `dlq redrive` and `dlq resolve`."""

import getpass
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from infra import options
from infra.commands import Json, fail, report, run_command
from infra.servers import Server

if TYPE_CHECKING:
    from consumers.dead_letters.letters import Condition, Letter
    from consumers.dead_letters.redrive import Fate

app = typer.Typer(
    no_args_is_help=True,
    help="Records that could not be processed: list them, send them again, close them.\n\nExample: thrones dlq list",
)


def _condition(text: str) -> "Condition":
    from consumers.dead_letters.letters import condition

    try:
        return condition(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _letter(text: str) -> str:
    if not re.fullmatch(r"(0|[1-9][0-9]{0,18}):(0|[1-9][0-9]{0,18})", text):
        raise typer.BadParameter(f"{text!r} is no letter's name: PARTITION:OFFSET, as `thrones dlq list` shows them")
    return text


LetterArgument = Annotated[
    str, typer.Argument(parser=_letter, metavar="PARTITION:OFFSET", help="As `dlq list` names it.")
]
Who = Annotated[str, typer.Option("--who", help="Kept with the letter. Default: your login name.")]
Where = Annotated[
    list[Any] | None,
    typer.Option(
        "--where",
        parser=_condition,
        metavar="FIELD=TEXT|FIELD~TEXT",
        help="Only letters whose field equals (=) or contains (~) TEXT; repeatable. Fields: letter, topic, partition, offset, "
        "reason, key, type, product, user.",
    ),
]
T = TypeVar("T")


@app.command("list")
def list_letters(
    where: Where = None,
    closed_too: Annotated[
        bool, typer.Option("--all", help="Also letters that are redriven or resolved, or whose order has ended since.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the dead letters that need action, oldest first, with their source and reason.

    Example: thrones dlq list --where topic=orders --where reason~product
    """
    from consumers.dead_letters import show
    from consumers.dead_letters.letters import matching

    async def main(settings: Any, pool: Any) -> Any:
        return await matching(settings, pool, where or [], closed_too=closed_too)

    found = _run(main)
    report([show.as_row(letter) for letter in found], show.listing(found), as_json)


@app.command("show")
def show_letter(
    letter: LetterArgument,
    as_json: Json = False,
) -> None:
    """Show one letter in full, with the value of its record.

    Example: thrones dlq show 1:42
    """
    from consumers.dead_letters import show
    from consumers.dead_letters.letters import find_letter

    async def main(settings: Any, pool: Any) -> Any:
        return await find_letter(settings, pool, letter)

    found = _run(main)
    report(show.as_page(found), show.page(found), as_json)


@app.command()
def redrive(
    where: Where = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only report what would be done.")] = False,
    rate: Annotated[float, typer.Option("--rate", min=0.01, max=10_000, help="Letters per second.")] = 100.0,
    who: Who = "",
    as_json: Json = False,
) -> None:
    """Send the records of dead letters again to their source topics. A failed order becomes a new order.

    A letter counts as redriven once the broker has acknowledged its record; it is not sent again. Without --where it takes
    all that `dlq list` shows. It waits up to 10 s for records that fail again. Exit 1 if one failed again or was refused.

    Example: thrones dlq redrive --where reason~"not in postgres" --rate 50 --dry-run
    """
    from consumers.dead_letters import show
    from consumers.dead_letters.comebacks import came_back, processed
    from consumers.dead_letters.letters import Letter, matching
    from consumers.dead_letters.redrive import Fate, Redrive
    from infra.settings import get_settings
    from sale.operations.operations import connected

    async def main(settings: Any, pool: Any) -> tuple[list[Fate], bool, list[Letter]]:
        from sale.books.inventory import Inventory

        letters = await matching(settings, pool, where or [])
        fates = []
        async with connected(get_settings()) as stores:
            desk = Redrive(settings, pool, Inventory(stores.redis), stores.publisher, who.strip() or getpass.getuser())
            async for fate in desk.run(letters, rate=rate, dry_run=dry_run):
                fates.append(fate)
                if not as_json:
                    typer.echo(show.fate(fate))
        sent = {fate.letter: fate.topic for fate in fates if fate.done != "refused" and not dry_run}
        known = not sent or await processed(settings, sent.values())
        return fates, known, await came_back(settings, pool, sent) if sent else []

    fates, known, returned = _run(main, asks=tuple(Server))
    summary, text = _redriven(fates, known, returned, dry_run=dry_run)
    report(summary, text, as_json)
    raise typer.Exit(1 if summary.get("refused") or returned else 0)


def _redriven(
    fates: "list[Fate]", known: bool, returned: "list[Letter]", *, dry_run: bool
) -> tuple[dict[str, Any], str]:
    """The result of a redrive, as data and as text."""
    from consumers.dead_letters import show

    counts = Counter(fate.done for fate in fates) + Counter({"came back": len(returned)})
    sentences = [", ".join(f"{count} {done}" for done, count in sorted(counts.items())) or "nothing to redrive"]
    if not known:
        sentences.append("not all records are processed yet: `thrones dlq list` will show those that fail again")
    comebacks = [{"letter": letter.came_back_from, "as": letter.name, "reason": letter.reason} for letter in returned]
    summary = {"dry_run": dry_run, "letters": len(fates), **counts, "fates": fates, "processed": known}
    text = "\n".join(
        [*map(show.comeback, returned), f"{'would be: ' if dry_run and fates else ''}{'; '.join(sentences)}"]
    )
    return {**summary, "came_back": comebacks}, text


@app.command()
def resolve(
    letter: LetterArgument,
    why: Annotated[str, typer.Option("--why", parser=options.why, metavar="TEXT", help="Kept with the letter.")],
    who: Who = "",
    as_json: Json = False,
) -> None:
    """Close a letter that needs no more action: it leaves the list and keeps your reason.

    Example: thrones dlq resolve 1:42 --why "a test of ours, no order"
    """
    from consumers.dead_letters import show
    from consumers.dead_letters.letters import resolve as close

    async def main(settings: Any, pool: Any) -> Any:
        return await close(settings, pool, letter, who.strip() or getpass.getuser(), why)

    found = _run(main)
    text = f"{letter} resolved by {found.resolved.who}: {found.resolved.why}"
    report(show.as_row(found), text, as_json)


def _run(main: Callable[[Any, Any], Awaitable[T]], asks: Collection[Server] = (Server.KAFKA, Server.POSTGRES)) -> T:
    from consumers.dead_letters.letters import DlqError
    from infra.postgres.pool import connect_postgres
    from infra.settings import get_settings

    async def with_pool() -> T:
        settings = get_settings()
        pool = await connect_postgres(settings)
        try:
            return await main(settings, pool)
        finally:
            await pool.close()

    try:
        return run_command(with_pool, asks=asks)
    except DlqError as error:
        fail(str(error))
