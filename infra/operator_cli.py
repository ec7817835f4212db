"""The operator's commands: `deploy`, `product create`, `stock rebuild`, `sale ...`, `settle`, `operator create`, `tokens`."""

from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from infra.cli import Json, fail, report, run_command
from infra.sale_cli import app as sale_app
from schemas.limits import DEFAULT_MAX_QUANTITY

app = typer.Typer(no_args_is_help=True)
product_app = typer.Typer(no_args_is_help=True, help="Products on sale.")
stock_app = typer.Typer(no_args_is_help=True, help="The books of a product in Redis.")
operator_app = typer.Typer(no_args_is_help=True, help="Users with the operator's role.")
app.add_typer(product_app, name="product")
app.add_typer(stock_app, name="stock")
app.add_typer(operator_app, name="operator")
app.add_typer(sale_app, name="sale")

ProductArgument = Annotated[int, typer.Argument(min=1, max=2**31 - 1, metavar="ID")]


class Outcome(StrEnum):
    """What an operator may settle an order as."""

    CONFIRMED = "confirmed"
    PAYMENT_FAILED = "payment_failed"


@app.command()
def deploy(as_json: Json = False) -> None:
    """Migrations, topics, and the reference's product 1 with its stock on sale; what is there already is left alone.

    Example: thrones deploy
    """
    from infra import operations
    from infra.provision import provision
    from infra.settings import get_settings

    async def main() -> None:
        await provision(get_settings())
        async with operations.connected(get_settings()) as stores:
            opened = await operations.deploy(stores)
        product = operations.REFERENCE_PRODUCT
        text = operations.describe(opened, product) if opened else f"product {product.id} is there already"
        report({"product_id": product.id, "opened": opened is not None}, text, as_json)

    run_command(main)


@product_app.command("create")
def create_product(
    id: Annotated[int, typer.Option("--id", min=1, max=2**31 - 1, help="A new product's id.")],
    name: Annotated[str, typer.Option("--name")],
    price: Annotated[str, typer.Option("--price", help="A decimal amount, like 9.99.")],
    stock: Annotated[int, typer.Option("--stock", min=0, max=2**31 - 1, help="Units on sale.")],
    currency: Annotated[str, typer.Option("--currency", help="ISO 4217, like USD.")] = "USD",
    per_user_limit: Annotated[int | None, typer.Option("--per-user-limit", min=1, help="Units a user.")] = None,
    max_quantity: Annotated[
        int, typer.Option("--max-quantity", min=1, max=2**31 - 1, help="Units an order.")
    ] = DEFAULT_MAX_QUANTITY,
    opens_at: Annotated[str | None, typer.Option("--opens-at", help="ISO 8601; UTC where no zone is given.")] = None,
    closes_at: Annotated[str | None, typer.Option("--closes-at", help="ISO 8601; UTC where no zone is given.")] = None,
    as_json: Json = False,
) -> None:
    """A new product, buyable on every worker when this returns. An id that exists is refused.

    Example: thrones product create --id 7 --name "Valyrian steel" --price 9.99 --stock 500
    """
    from infra import operations
    from infra.settings import get_settings
    from schemas.ids import ProductId

    product = operations.NewProduct(
        id=ProductId(id),
        name=_name(name),
        price_cents=_price(price),
        stock=stock,
        currency=_currency(currency),
        per_user_limit=per_user_limit,
        max_quantity=max_quantity,
        opens_at=_time(opens_at),
        closes_at=_time(closes_at),
    )
    if product.opens_at and product.closes_at and product.opens_at >= product.closes_at:
        fail("--opens-at must be before --closes-at")

    async def main() -> None:
        async with operations.connected(get_settings()) as stores:
            opened = await operations.create_product(stores, product)
        report({"product_id": product.id, "epoch": opened.epoch}, operations.describe(opened, product), as_json)

    run_command(main)


@stock_app.command("rebuild")
def rebuild(product: ProductArgument, as_json: Json = False) -> None:
    """Make a product's books anew from Postgres, the log and what Redis still holds, under a new epoch.

    Example: thrones stock rebuild 1
    """
    from infra import operations
    from infra.settings import get_settings
    from schemas.ids import ProductId

    async def main() -> None:
        async with operations.connected(get_settings()) as stores:
            opened = await operations.open_stock(stores, ProductId(product), "operator")
        report(opened, operations.describe(opened), as_json)

    run_command(main)


@app.command()
def settle(
    order: Annotated[str, typer.Argument(metavar="ORDER")],
    outcome: Annotated[Outcome, typer.Option("--as", help="What the provider says has become of the charge.")],
    why: Annotated[str, typer.Option("--why", help="Kept with the order.")],
    as_json: Json = False,
) -> None:
    """Settle an order by hand, once the provider has answered a person and can no longer answer the reconciler.

    Example: thrones settle 01936f2e-7d1c-7a30-8000-0123456789ab --as confirmed --why "provider ticket 4711"
    """
    from infra import operations
    from infra.settings import get_settings
    from schemas.ids import parse_order_id
    from schemas.order_state import Status

    order_id = parse_order_id(order)
    if order_id is None:
        fail(f"not an order id: {order}")
    if not why.strip():
        fail("--why must say why")
    wanted: operations.Outcome = Status.CONFIRMED if outcome is Outcome.CONFIRMED else Status.PAYMENT_FAILED

    async def main() -> None:
        assert order_id is not None
        async with operations.connected(get_settings()) as stores:
            status = await operations.settle(stores, order_id, wanted, why.strip())
        report({"order_id": order_id, "status": status}, f"order {order_id} is {status}", as_json)

    run_command(main)


@operator_app.command("create")
def create_operator(
    email: Annotated[str, typer.Option("--email")],
    name: Annotated[str, typer.Option("--name")] = "Operator",
    password: Annotated[
        str,
        typer.Option("--password", envvar="OPERATOR_PASSWORD", prompt=True, hide_input=True, help="Asked if absent."),
    ] = "",
    as_json: Json = False,
) -> None:
    """A user with the operator's role, who logs in like everybody else.

    Example: OPERATOR_PASSWORD=... thrones operator create --email ned@winterfell.example --name Ned
    """
    from infra import operations
    from infra.settings import get_settings

    async def main() -> None:
        async with operations.connected(get_settings()) as stores:
            user_id = await operations.create_operator(stores, name, email, password)
        report({"user_id": user_id, "email": email}, f"operator {user_id}: {email}", as_json)

    run_command(main)


@operator_app.command("demote")
def demote_operator(email: Annotated[str, typer.Option("--email")], as_json: Json = False) -> None:
    """Take the operator's role from a user, at once: tokens that still name it are refused by the operators' routes.

    Example: thrones operator demote --email ned@winterfell.example
    """
    from infra import operations
    from infra.settings import get_settings

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
    """Bearer tokens of users who exist but cannot log in, for load tests. Development profile only; repeatable.

    Example: thrones tokens --users 100000 --out tokens.json
    """
    import msgspec

    from infra import operations
    from infra.postgres.pool import connect_postgres
    from infra.settings import get_signing_settings

    async def main() -> None:
        settings = get_signing_settings()
        pool = await connect_postgres(settings)
        try:
            made = await operations.bulk_tokens(pool, users, settings)
        finally:
            await pool.close()
        out.parent.mkdir(parents=True, exist_ok=True)
        out.touch(mode=0o600)
        out.write_bytes(msgspec.json.encode(made))
        report({"users": users, "out": str(out)}, f"{users} tokens in {out}", as_json)

    run_command(main)


def _name(text: str) -> str:
    if not text.strip() or len(text) > 200 or not text.isprintable():
        fail("--name must have 1 to 200 printable characters")
    return text.strip()


def _price(text: str) -> int:
    from schemas.money import to_cents

    try:
        cents = to_cents(text)
    except ValueError as error:
        fail(f"--price: {error}")
    if cents == 0:
        fail("--price must be above zero: the provider charges no less than a cent")
    return cents


def _currency(text: str) -> str:
    if len(text) != 3 or not (text.isascii() and text.isalpha() and text.isupper()):
        fail(f"--currency: not an ISO 4217 code: {text}")
    return text


def _time(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        fail(f"not a time: {text} (like 2026-12-24T18:00:00Z)")
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
