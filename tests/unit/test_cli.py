"""The command line without a stack: what it explains, what it refuses, and how it says so."""

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import click
import jwt
import pytest
import typer.main
from typer.testing import CliRunner, Result

from infra.settings import SigningSettings, get_settings, get_signing_settings
from sale.accounts.tokens import ALGORITHM, AUDIENCE, ISSUER, sign, sign_all
from sale.operations.operations import NewProduct, created, describe
from schemas.events import StockOpened
from schemas.ids import ProductId
from thrones import app

RUN = CliRunner()
REPORTING = (
    "deploy",
    "product create",
    "stock rebuild",
    "settle",
    "operator create",
    "operator demote",
    "tokens",
    "audit",
    "demo",
    "env",
    "doctor",
    "lag",
    "scale",
    "autoscale",
    "sale pause",
    "dlq list",
    "dlq redrive",
    "status",
    "replay",
    "sql",
    "prove",
    "rewind",
    "report",
)
SECRET = "a secret that is long enough for HS256"  # of these tests alone


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No stack, no settings of whoever runs the tests, and none that are remembered."""
    monkeypatch.setenv("THRONES_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("DB_PORT", "1")
    monkeypatch.setenv("DB_HOST", "127.0.0.1")
    monkeypatch.setenv("JWT_SECRET", SECRET)
    monkeypatch.delenv("THRONES_PROFILE", raising=False)
    get_settings.cache_clear()
    get_signing_settings.cache_clear()
    yield
    get_settings.cache_clear()
    get_signing_settings.cache_clear()


def every_command(group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    group = group or typer.main.get_command(app)
    commands = getattr(group, "commands", None)
    if commands is None:
        yield " ".join(path), group
        return
    for name, command in commands.items():
        yield from every_command(command, (*path, name))


@pytest.mark.parametrize(("name", "command"), list(every_command()), ids=[name for name, _ in every_command()])
def test_every_command_shows_an_example(name: str, command: click.Command) -> None:
    assert command.help is not None
    assert "Example:" in command.help
    assert name in command.help.split("Example:")[1]


def every_group(group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    group = group or typer.main.get_command(app)
    if hasattr(group, "commands"):
        yield " ".join(path), group
        for name, command in group.commands.items():
            yield from every_group(command, (*path, name))


@pytest.mark.parametrize(("name", "group"), list(every_group()), ids=[name or "thrones" for name, _ in every_group()])
def test_every_group_of_commands_shows_an_example(name: str, group: Any) -> None:
    assert f"Example: thrones {name}" in (group.help or "")
    result = RUN.invoke(app, name.split())
    assert "Example" in result.output


def test_every_command_of_the_interface_is_there() -> None:
    names = {name for name, _ in every_command()}
    assert {
        *("setup", "up", "down", "reset", "status", "env", "logs", "doctor"),
        *("deploy", "product create", "stock rebuild", "settle", "operator create", "tokens", "audit", "demo"),
        *("gateway", "stage", "relay", "projector", "reconciler", "payment-gateway"),
    } <= names


@pytest.mark.parametrize("name", REPORTING)
def test_what_reports_can_report_to_machines(name: str) -> None:
    command = dict(every_command())[name]
    assert "--json" in {option for parameter in command.params for option in parameter.opts}


def test_version() -> None:
    result = RUN.invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.output.startswith("thrones ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--price", "free"], "not an amount"),
        (["--price", "0"], "above zero"),
        (["--price", "9.999"], "not an amount"),
        (["--price", "٣.٥"], "not an amount"),
        (["--price", "90071992547409.93"], "too much"),
        (["--price", "9007199254741.00"], "an order of 10"),
        (["--currency", "dollars"], "ISO 4217"),
        (["--currency", "ABC"], "ISO 4217"),
        (["--currency", "XXX"], "a price cannot be in XXX"),
        (["--opens-at", "soon"], "not a time"),
        (["--opens-at", "٢٠٢٦-12-24"], "not a time"),
        (["--opens-at", "9999-12-31T23:59:59-14:00"], "out of range: 1970-01-01T00:00:00Z to 9999-12-31T23:59:59Z"),
        (["--opens-at", "0001-01-01T00:00+14:00"], "out of range"),
        (["--closes-at", "1969-12-31"], "out of range"),
        (["--price", "90071992547409.92", "--max-quantity", "2"], "an order of 2"),
        (["--per-user-limit", "999999999999"], "less than or equal to 2147483647"),
        (["--stock", "2147483648"], "less than or equal to 2147483647"),
        (["--opens-at", "2026-12-24T18:00:00Z", "--closes-at", "2026-12-24T17:00:00Z"], "before --closes-at"),
        (["--name", " "], "--name"),
    ],
)
def test_a_product_that_cannot_be_sold_is_refused(arguments: list[str], said: str) -> None:
    wish = {"--id": "7", "--name": "Valyrian steel", "--price": "9.99", "--stock": "5"}
    wish |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    result = RUN.invoke(app, ["product", "create", *(word for pair in wish.items() for word in pair)])
    is_a_fault_of_usage(result, said)
    assert arguments[0] in result.stderr


def test_tokens_are_refused_outside_development(tmp_path: Path) -> None:
    result = RUN.invoke(app, ["tokens", "--users", "1", "--out", str(tmp_path / "tokens.json")])
    assert result.exit_code == 1
    assert "development profile only" in result.stderr
    assert not (tmp_path / "tokens.json").exists()


def test_a_store_that_is_away_is_one_line_and_no_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("THRONES_PROFILE", "development")
    result = RUN.invoke(app, ["tokens", "--users", "1", "--out", str(tmp_path / "tokens.json")])
    assert result.exit_code == 1
    assert "is the stack up?" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["scale", "order-stage", "2"], "no stack runs here"),
        (["autoscale", "order-stage"], "no stack runs here"),
        (["logs", "wall"], "no log of wall"),
        (["env"], "there is no stack here"),
        (["sale", "show", "1"], "is the stack up?"),
        (["sale", "pause", "1", "--why", "x"], "is the stack up?"),
        (["dlq", "list"], "is the stack up?"),
        (["stock", "rebuild", "1"], "is the stack up?"),
    ],
    ids=" ".join,
)
def test_what_is_not_there_is_named_in_one_line(command: list[str], said: str) -> None:
    result = RUN.invoke(app, command)
    assert result.exit_code == 1
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["scale", "order-stage", "33"], "'N'"),
        (["scale", "order-stage", "-1"], "-1"),
        (["scale", "order-stage"], "Missing argument 'N'"),
        (["scale", "wall", "2"], "'wall' is not one of 'order-stage', 'payment-stage'"),
        (["autoscale", "wall"], "'wall' is not one of 'order-stage', 'payment-stage'"),
        (["autoscale", "--lag-per-member", "0"], "'--lag-per-member'"),
        (["lag", "--every", "0"], "'--every'"),
        (["lag", "--every", "nan"], "'--every'"),
        (["audit", "--wait", "inf"], "'--wait'"),
        (["audit", "--client-log", "nowhere"], "'--client-log'"),
        (["sale", "pause", "1"], "Missing option '--why'"),
        (["sale", "pause", "1", "--why", " "], "'--why'"),
        (["sale", "pause", "sword", "--why", "x"], "'PRODUCT'"),
        (["sale", "pause", "٣", "--why", "x"], "'PRODUCT'"),
        (["sale", "restock", "1", "--why", "x"], "Missing option '--units'"),
        (["sale", "restock", "1", "--units", "0", "--why", "x"], "'--units'"),
        (["settle", "7", "--as", "confirmed", "--why", "x"], "'7' is not an order id"),
        (["settle", "7", "--as", "failed", "--why", "x"], "'--as'"),
        (["dlq", "redrive", "--rate", "0"], "'--rate'"),
        (["dlq", "show"], "Missing argument 'PARTITION:OFFSET'"),
        (["dlq", "show", "٣:٤"], "'٣:٤' is no letter's name"),
        (["dlq", "list", "--where", "colour=red"], "FIELD=TEXT (equal) or FIELD~TEXT (contains)"),
        (["replay", "orders", "--from", "soon"], "neither an offset nor a time"),
        (["replay", "orders", "--from", "0001-01-01"], "records have times of 1970 to 9999"),
        (
            ["replay", "orders", "--to", "1795708431893000000"],
            "a Unix time in nanoseconds: write 2026-11-26T15:53:51.893Z",
        ),
        (["replay", "orders", "--out", "sale.xls"], "its ending must be one of"),
        (["sql", "SELECT 1", "--from", "1795708431893"], "a Unix time in milliseconds"),
        (["sql", "SELECT 1", "--data", "x", "--from", "5"], "--from, --to"),
        (["report", "--out", "sale.txt"], "a page ends in .html"),
        (["stage", "wood"], "'wood' is not one of 'order', 'payment'"),
        (["sails"], "No such command 'sails'. Did you mean 'sale', 'scale'?"),
        (["--nonsense"], "No such option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_meant_is_a_fault_of_usage(command: list[str], said: str) -> None:
    is_a_fault_of_usage(RUN.invoke(app, command), said)


def is_a_fault_of_usage(result: Result, said: str) -> None:
    """One line that names the command, and exit 2."""
    assert result.exit_code == 2
    assert result.stdout == ""
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(("name", "command"), list(every_command()), ids=[name for name, _ in every_command()])
def test_every_number_has_a_range(name: str, command: Any) -> None:
    """Both ends: what no store can hold is refused by the option, and nan, which is in no range, as well."""
    for parameter in command.params:
        described = parameter.type_descriptor
        parsed = described.parameter_info.parser is not None  # it has a range of its own
        if described.annotation in (int, float) and not parsed and parameter.name != "fd":  # the supervisor's
            assert described.parameter_info.min is not None, parameter.name
            assert described.parameter_info.max is not None, parameter.name


@pytest.mark.parametrize("secret", ["", "short", "your-secret-key-change-in-production"])
def test_a_gateway_without_a_secret_does_not_start(monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    monkeypatch.setenv("JWT_SECRET", secret)
    result = RUN.invoke(app, ["gateway"])
    assert result.exit_code == 1


def test_a_proxy_that_is_no_network_is_named_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUSTED_PROXIES", "10.0.0.0/8, nginx")
    result = RUN.invoke(app, ["gateway"])
    assert result.exit_code == 1
    assert "TRUSTED_PROXIES" in str(result.exception) + result.output
    assert "'nginx'" in str(result.exception) + result.output


def test_tokens_say_what_the_gateway_checks() -> None:
    settings = SigningSettings(jwt_secret=SECRET)  # type: ignore[arg-type]  # pydantic takes the text
    tokens = [*sign_all([1, 2], "user", settings), sign(3, "operator", settings)]
    claims = [
        jwt.decode(
            token, SECRET, algorithms=[ALGORITHM], audience=AUDIENCE, issuer=ISSUER, options={"require": ["exp"]}
        )
        for token in tokens
    ]
    assert [claim["sub"] for claim in claims] == ["1", "2", "3"]
    assert [claim["role"] for claim in claims] == ["user", "user", "operator"]
    assert all(claim["exp"] - claim["iat"] == 86_400 for claim in claims)


def test_help_loads_no_room_and_no_client_library() -> None:
    """Every process starts through this module: what it loads, all of them load."""
    code = "import sys, thrones; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"aiokafka", "asyncpg", "redis", "aiohttp", "faust", "pydantic_settings"} & set(loaded)


def test_what_was_created_is_echoed_with_its_window() -> None:
    opened = StockOpened(
        product_id=7, epoch=1, initial=5, available=5, held=0, sold=0, opened_at_ms=0, reason="product created"
    )
    begin, end = (
        datetime(2026, 12, 24, 18, tzinfo=UTC),
        datetime(2026, 12, 24, 19, tzinfo=timezone(timedelta(hours=-1))),
    )
    product = NewProduct(ProductId(7), "Ice", 999, 5, per_user_limit=2, max_quantity=3, opens_at=begin, closes_at=end)
    assert describe(opened, product) == (
        'product 7 "Ice" at 9.99 USD: 5 of 5 on sale from 2026-12-24T18:00:00Z until 2026-12-24T20:00:00Z, '
        "at most 2 a user, at most 3 an order, 0 held, 0 sold (epoch 1)"
    )
    told = created(opened, product)
    assert (told["opens_at"], told["closes_at"]) == ("2026-12-24T18:00:00Z", "2026-12-24T20:00:00Z")
    assert (told["price"], told["currency"], told["stock"], told["max_quantity"]) == ("9.99", "USD", 5, 3)
