"""The command `incident acknowledge`."""

import getpass
from typing import Annotated

import typer

from infra import options
from infra.commands import Json, fail, report, run_command

app = typer.Typer(
    no_args_is_help=True,
    help="Findings of the audit that are understood.\n\nExample: thrones incident acknowledge 1 --why ...",
)


@app.callback()
def group() -> None:
    """A group, so that `acknowledge` stays a subcommand."""


@app.command()
def acknowledge(
    product: Annotated[int, typer.Argument(min=1, max=options.LARGEST_INTEGER, metavar="PRODUCT")],
    why: Annotated[str, typer.Option("--why", parser=options.why, metavar="TEXT", help="Kept on the log.")],
    who: Annotated[str, typer.Option("--who", help="Your name on the log. Default: your login name.")] = "",
    as_json: Json = False,
) -> None:
    """Acknowledge everything that `audit` and `prove` find wrong with a product now: still shown, but no failure.

    Later findings fail again. Refused while orders of the product are under way.

    Example: thrones incident acknowledge 1 --why "redis was restored from a copy, ticket 4711" --who Ned
    """
    from consumers.incidents import incidents
    from infra.settings import get_settings
    from sale.operations.operations import OperationRefused, connected
    from schemas.ids import ProductId

    async def main() -> list[str]:
        async with connected(get_settings()) as stores:
            return await incidents.acknowledge(stores, ProductId(product), who.strip() or getpass.getuser(), why)

    try:
        findings = run_command(main)
    except OperationRefused as refused:
        fail(str(refused))
    text = "\n".join([f"product {product}: {len(findings)} findings acknowledged", *(f"  - {one}" for one in findings)])
    report({"product_id": product, "acknowledged": findings}, text, as_json)
