"""Parsers of option values, for `typer.Option(parser=...)`: text in, a value that every store can hold out.

Any other text is a usage error that names the option. Numbers need no parser: typer's `min` and `max` give their range.
"""

from datetime import UTC, datetime

import typer

from schemas.limits import LONGEST_WHY

from .text import is_plain

EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
LATEST = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
LARGEST_INTEGER = 2**31 - 1  # the largest Postgres integer: product ids, units
LONGEST_NAME = 200


def product_name(text: str) -> str:
    if not is_plain(text, LONGEST_NAME):
        raise typer.BadParameter(f"1 to {LONGEST_NAME} printable characters")
    return text.strip()


def why(text: str) -> str:
    if not is_plain(text, LONGEST_WHY):
        raise typer.BadParameter(f"1 to {LONGEST_WHY} printable characters that say why")
    return text.strip()


def price(text: str) -> int:
    """In minor units."""
    from schemas.money import to_cents

    try:
        cents = to_cents(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if cents == 0:
        raise typer.BadParameter("it must be above zero: the provider charges no less than a cent")
    return cents


def currency(text: str) -> str:
    """An ISO 4217 code of real money: codes for metals and for tests have no minor unit."""
    from iso4217 import Currency

    try:
        known = Currency(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not an ISO 4217 code, like USD") from None
    if known.exponent is None:
        raise typer.BadParameter(f"a price cannot be in {text} ({known.currency_name})")
    return text


def moment(text: str) -> datetime:
    """A time without a zone is UTC."""
    try:
        at = datetime.fromisoformat(text)
        at = (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a time (like 2026-12-24T18:00:00Z)") from None
    except OverflowError:  # the year 0 or 10000 in UTC
        at = None
    if at is None or not EARLIEST <= at <= LATEST:
        raise typer.BadParameter(
            f"{text!r} is out of range: {EARLIEST:%Y-%m-%dT%H:%M:%SZ} to {LATEST:%Y-%m-%dT%H:%M:%SZ}"
        )
    return at


def order_id(text: str) -> str:
    from schemas.ids import parse_order_id

    found = parse_order_id(text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is not an order id")
    return found
