"""The commands `sale show`, `sale pause`, `sale resume`, `sale close` and `sale restock`."""

import getpass
from typing import Annotated

import typer

from infra import options
from infra.commands import Json, report, run_command
from infra.servers import Server

app = typer.Typer(
    no_args_is_help=True,
    help="Sales under way: who did what to them, when and why is kept.\n\nExample: thrones sale show 1",
)

ProductArgument = Annotated[int, typer.Argument(min=1, max=options.LARGEST_INTEGER, metavar="PRODUCT")]
Why = Annotated[str, typer.Option("--why", parser=options.why, metavar="TEXT", help="Kept in the audit trail.")]
Who = Annotated[str, typer.Option("--who", help="Your name in the audit trail; else the system's name for you.")]

Key = Annotated[
    str,
    typer.Option(
        "--key", help="Repeat the command with the same key: it is done once, and the key serves no other wish."
    ),
]


@app.command()
def show(product: ProductArgument, as_json: Json = False) -> None:
    """A sale's state and its audit trail, newest action first.

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
    """Refuse new orders with 503 `sale_paused`; what was accepted goes on. Survives every restart and rebuild.

    Example: thrones sale pause 1 --why "wrong picture on the page"
    """
    _control(product, "pause", why, who, key, as_json)


@app.command()
def resume(product: ProductArgument, why: Why, who: Who = "", key: Key = "", as_json: Json = False) -> None:
    """Sell again.

    Example: thrones sale resume 1 --why "picture replaced"
    """
    _control(product, "resume", why, who, key, as_json)


@app.command()
def close(product: ProductArgument, why: Why, who: Who = "", key: Key = "", as_json: Json = False) -> None:
    """End the sale now and for good: new orders get 409 `sale_closed`, what was accepted goes on.

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
    """Add units: the product's books are made anew under a new epoch, and refuse with 503 for that moment.

    Example: thrones sale restock 1 --units 50 --why "second delivery" --key delivery-2
    """
    _control(product, "restock", why, who, key, as_json, units)


def _control(product: int, action: str, why: str, who: str, key: str, as_json: bool, units: int | None = None) -> None:
    from infra.settings import get_settings
    from sale.books.keys import key_hash
    from sale.operations.operations import connected
    from sale.operations.sale_control import Action, SaleCommand, SaleStatus, control, describe
    from schemas.ids import ProductId

    hashed = key_hash(key) if key else None
    wish = SaleCommand(Action(action), who.strip() or getpass.getuser(), why, units, hashed)

    async def main() -> SaleStatus:
        async with connected(get_settings()) as stores:
            return await control(stores, ProductId(product), wish)

    done = run_command(main)
    report(done, describe(done), as_json)
