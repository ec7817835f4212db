"""The commands `sale show`, `sale pause`, `sale resume`, `sale close` and `sale restock`."""

import getpass
from typing import Annotated

import typer

from infra import options
from infra.commands import Json, report, run_command
from infra.servers import Server

app = typer.Typer(
    no_args_is_help=True,
    help="Control a running sale. Every action is kept with who, when and why.\n\nExample: thrones sale show 1",
)

ProductArgument = Annotated[int, typer.Argument(min=1, max=options.LARGEST_INTEGER, metavar="PRODUCT")]
Why = Annotated[str, typer.Option("--why", parser=options.why, metavar="TEXT", help="Kept in the audit trail.")]
Who = Annotated[str, typer.Option("--who", help="Your name in the audit trail. Default: your login name.")]

Key = Annotated[
    str,
    typer.Option(
        "--key",
        help="An idempotency key: a repetition with the same key does nothing, another action with it is refused.",
    ),
]


@app.command()
def show(product: ProductArgument, as_json: Json = False) -> None:
    """Show the state of a sale and its audit trail, newest action first.

    Example: thrones sale show 1
    """
    from infra.postgres.pool import connect_postgres
    from infra.settings import get_settings
    from sale.operations.sale_control import SaleStatus, describe, sale
    from schemas.ids import ProductId

    async def main() -> SaleStatus:
        pool = await connect_postgres(get_settings())
        try:
            return await sale(pool, ProductId(product))
        finally:
            await pool.close()

    found = run_command(main, asks=[Server.POSTGRES])
    report(found, describe(found), as_json)


@app.command()
def pause(product: ProductArgument, why: Why, who: Who = "", key: Key = "", as_json: Json = False) -> None:
    """Refuse new orders with 503 `sale_paused`; accepted orders continue. It survives every restart and rebuild.

    Example: thrones sale pause 1 --why "wrong picture on the page"
    """
    _control(product, "pause", why, who, key, as_json)


@app.command()
def resume(product: ProductArgument, why: Why, who: Who = "", key: Key = "", as_json: Json = False) -> None:
    """Sell again after a pause.

    Example: thrones sale resume 1 --why "picture replaced"
    """
    _control(product, "resume", why, who, key, as_json)


@app.command()
def close(product: ProductArgument, why: Why, who: Who = "", key: Key = "", as_json: Json = False) -> None:
    """End the sale for good: new orders get 409 `sale_closed`; accepted orders continue.

    Example: thrones sale close 1 --why "recalled by the maker"
    """
    _control(product, "close", why, who, key, as_json)


@app.command()
def restock(
    product: ProductArgument,
    units: Annotated[int, typer.Option("--units", min=1, max=options.LARGEST_INTEGER, help="Units to add.")],
    why: Why,
    who: Who = "",
    key: Key = "",
    as_json: Json = False,
) -> None:
    """Add units. The product's books are rebuilt in a new epoch; meanwhile new orders get 503.

    Example: thrones sale restock 1 --units 50 --why "second delivery" --key delivery-2
    """
    _control(product, "restock", why, who, key, as_json, units)


def _control(product: int, action: str, why: str, who: str, key: str, as_json: bool, units: int | None = None) -> None:
    from infra.settings import get_settings
    from sale.books.key_record import key_hash
    from sale.operations.operations import connected
    from sale.operations.sale_control import Action, SaleCommand, SaleStatus, control, describe
    from schemas.ids import ProductId

    hashed = key_hash(key) if key else None
    command = SaleCommand(Action(action), who.strip() or getpass.getuser(), why, units, hashed)

    async def main() -> SaleStatus:
        async with connected(get_settings()) as stores:
            return await control(stores, ProductId(product), command)

    done = run_command(main)
    report(done, describe(done), as_json)
