"""The operator's commands: `deploy`, `product create`, `stock rebuild`, `sale ...`, `settle`, `operator create`, `tokens`."""

from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra import options
from infra.commands import Json, report, run_command
from infra.servers import Server
from sale.operations.sale_cli import app as sale_app
from schemas.limits import DEFAULT_MAX_QUANTITY

if TYPE_CHECKING:
    from sale.operations.operations import NewProduct

app = typer.Typer(no_args_is_help=True)
product_app = typer.Typer(
    no_args_is_help=True,
    help='Products on sale.\n\nExample: thrones product create --id 7 --name "Valyrian steel" --price 9.99 --stock 500',
)
stock_app = typer.Typer(
    no_args_is_help=True, help="The stock of a product in Redis.\n\nExample: thrones stock rebuild 1"
)
operator_app = typer.Typer(
    no_args_is_help=True,
    help="Users with the operator's role.\n\nExample: thrones operator create --email ned@winterfell.example --name Ned",
)
app.add_typer(product_app, name="product")
app.add_typer(stock_app, name="stock")
app.add_typer(operator_app, name="operator")
app.add_typer(sale_app, name="sale")

LONGEST_WARM_UP_S = 300
ProductArgument = Annotated[int, typer.Argument(min=1, max=options.LARGEST_INTEGER, metavar="ID")]


def _moment(option: str) -> Any:
    return typer.Option(option, parser=options.moment, metavar="TIME", help="ISO 8601; UTC without a zone.")


class SettleAs(StrEnum):
    """The outcomes that an operator may give an order."""

    CONFIRMED = "confirmed"
    PAYMENT_FAILED = "payment_failed"


@app.command()
def deploy(as_json: Json = False) -> None:
    """Apply migrations, create topics, and put product 1 on sale with its stock. It never changes what exists.

    Example: thrones deploy
    """
    from infra.settings import get_settings
    from sale.operations import operations
    from sale.operations.provision import provision

    async def main() -> None:
        await provision(get_settings())
        async with operations.connected(get_settings()) as stores:
            opened = await operations.deploy(stores)
        product = operations.REFERENCE_PRODUCT
        text = operations.describe(opened, product) if opened else f"product {product.id} is there already"
        report({"product_id": product.id, "opened": opened is not None}, text, as_json)

    run_command(main)


@app.command()
def warm(
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, max=LONGEST_WARM_UP_S, help="For so long.")] = 10.0,
    as_json: Json = False,
) -> None:
    """Run every hot path on scratch data shortly before a sale, and leave nothing of it.

    Two hundred orders of a product that nobody can buy pass Redis' scripts and Postgres' statements; then the brokers write
    and read a scratch topic, for --seconds: one that has just started is slow for its first thousand requests.

    Example: thrones warm --seconds 20
    """
    import msgspec

    from infra.settings import get_settings
    from sale.operations import warming

    async def main() -> None:
        warmed = await warming.warm(get_settings(), seconds)
        text = f"{warmed.orders} orders and {warmed.records:,} records passed; all of it is deleted again"
        report(msgspec.structs.asdict(warmed), text, as_json)

    run_command(main)


Currency = Annotated[
    str, typer.Option("--currency", parser=options.currency, metavar="CODE", help="ISO 4217, like USD.")
]
UserLimit = Annotated[
    int | None, typer.Option("--per-user-limit", min=1, max=options.LARGEST_INTEGER, help="Units a user.")
]
LargestOrder = Annotated[
    int, typer.Option("--max-quantity", min=1, max=options.LARGEST_INTEGER, help="Units an order.")
]


@product_app.command("create")
def create_product(
    id: Annotated[int, typer.Option("--id", min=1, max=options.LARGEST_INTEGER, help="A new product's id.")],
    name: Annotated[str, typer.Option("--name", parser=options.product_name, metavar="TEXT")],
    price: Annotated[int, typer.Option("--price", parser=options.price, metavar="AMOUNT", help="Like 9.99.")],
    stock: Annotated[int, typer.Option("--stock", min=0, max=options.LARGEST_INTEGER, help="Units on sale.")],
    currency: Currency = "USD",
    per_user_limit: UserLimit = None,
    max_quantity: LargestOrder = DEFAULT_MAX_QUANTITY,
    opens_at: Annotated[datetime | None, _moment("--opens-at")] = None,
    closes_at: Annotated[datetime | None, _moment("--closes-at")] = None,
    as_json: Json = False,
) -> None:
    """Create a product, buyable on every worker when this returns. An existing id is refused.

    Example: thrones product create --id 7 --name "Valyrian steel" --price 9.99 --stock 500
    """
    from infra.settings import get_settings
    from sale.operations import operations
    from schemas.ids import ProductId

    product = operations.NewProduct(
        id=ProductId(id),
        name=name,
        price_cents=price,
        stock=stock,
        currency=currency,
        per_user_limit=per_user_limit,
        max_quantity=max_quantity,
        opens_at=opens_at,
        closes_at=closes_at,
    )
    _check_terms(product)

    async def main() -> None:
        async with operations.connected(get_settings()) as stores:
            opened = await operations.create_product(stores, product)
        report(operations.created(opened, product), operations.describe(opened, product), as_json)

    run_command(main)


def _check_terms(product: "NewProduct") -> None:
    from schemas.money import MOST_CENTS, to_decimal

    if product.price_cents * product.largest_order > MOST_CENTS:
        most = f"an order of {product.largest_order} would cost more than {to_decimal(MOST_CENTS)}"
        raise typer.BadParameter(f"{to_decimal(product.price_cents)} is too much: {most}", param_hint="'--price'")
    if product.opens_at and product.closes_at and product.opens_at >= product.closes_at:
        raise typer.BadParameter("it must be before --closes-at", param_hint="'--opens-at'")


@stock_app.command("rebuild")
def rebuild(product: ProductArgument, as_json: Json = False) -> None:
    """Rebuild a product's books from Postgres, the log and what Redis still holds, in a new epoch.

    Example: thrones stock rebuild 1
    """
    from infra.settings import get_settings
    from sale.operations import operations
    from schemas.ids import ProductId

    async def main() -> None:
        async with operations.connected(get_settings()) as stores:
            opened = await operations.open_stock(stores, ProductId(product), "operator")
        report(opened, operations.describe(opened), as_json)

    run_command(main)


@app.command()
def settle(
    order: Annotated[str, typer.Argument(parser=options.order_id, metavar="ORDER")],
    outcome: Annotated[SettleAs, typer.Option("--as", help="The outcome of the charge, as the provider reports it.")],
    why: Annotated[str, typer.Option("--why", parser=options.why, metavar="TEXT", help="Kept with the order.")],
    early: Annotated[
        bool, typer.Option("--early", help="Settle even while the reconciler still asks the provider.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Settle an order by hand, with the answer of the provider's staff, once the reconciler can no longer ask the provider.

    Only for an order whose payment is unknown. The command first takes it from the reconciler, which takes 8 s.

    Example: thrones settle 01936f2e-7d1c-7a30-8000-0123456789ab --as confirmed --why "provider ticket 4711"
    """
    from infra.settings import get_settings
    from sale.operations import operations
    from schemas.ids import OrderId
    from schemas.order_state import Status

    wanted: operations.SettledAs = Status.CONFIRMED if outcome is SettleAs.CONFIRMED else Status.PAYMENT_FAILED

    async def main() -> None:
        async with operations.connected(get_settings()) as stores:
            status = await operations.settle(stores, OrderId(order), wanted, why, early=early)
        report({"order_id": order, "status": status}, f"order {order} is {status}", as_json)

    run_command(main)


@operator_app.command("create")
def create_operator(
    email: Annotated[str, typer.Option("--email")],
    name: Annotated[str, typer.Option("--name")] = "Operator",
    password: Annotated[
        str,
        typer.Option(
            "--password", envvar="OPERATOR_PASSWORD", prompt=True, hide_input=True, help="Prompted for if absent."
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """Create a user with the operator's role, who logs in like every user.

    Example: OPERATOR_PASSWORD=... thrones operator create --email ned@winterfell.example --name Ned
    """
    from infra.settings import get_settings
    from sale.operations import operations

    async def main() -> None:
        async with operations.connected(get_settings()) as stores:
            user_id = await operations.create_operator(stores, name, email, password)
        report({"user_id": user_id, "email": email}, f"operator {user_id}: {email}", as_json)

    run_command(main)


@operator_app.command("demote")
def demote_operator(email: Annotated[str, typer.Option("--email")], as_json: Json = False) -> None:
    """Take the operator's role from a user. It takes effect at once: older tokens are refused by the operators' routes.

    Example: thrones operator demote --email ned@winterfell.example
    """
    from infra.settings import get_settings
    from sale.operations import operations

    async def main() -> None:
        async with operations.connected(get_settings()) as stores:
            user_id = await operations.demote_operator(stores, email)
        report({"user_id": user_id, "email": email}, f"user {user_id} is no operator any more: {email}", as_json)

    run_command(main)


@app.command()
def tokens(
    users: Annotated[int, typer.Option("--users", min=1, max=1_000_000, help="How many users.")],
    out: Annotated[Path, typer.Option("--out", help="The file to write: a JSON array of bearer tokens.")],
    as_json: Json = False,
) -> None:
    """Write bearer tokens for load tests, of users who exist but cannot log in. Development profile only; repeatable.

    Example: thrones tokens --users 100000 --out tokens.json
    """
    import msgspec

    from infra.postgres.pool import connect_postgres
    from infra.reach import require_reachable
    from infra.settings import get_signing_settings
    from sale.operations import operations

    async def main() -> None:
        settings = get_signing_settings()
        operations.require_development(settings)
        await require_reachable(settings, [Server.POSTGRES])
        pool = await connect_postgres(settings)
        try:
            made = await operations.bulk_tokens(pool, users, settings)
        finally:
            await pool.close()
        out.parent.mkdir(parents=True, exist_ok=True)
        out.touch(mode=0o600)
        out.write_bytes(msgspec.json.encode(made))
        report({"users": users, "out": str(out)}, f"{users} tokens in {out}", as_json)

    run_command(main, asks=[])  # it checks the servers itself, after the profile
