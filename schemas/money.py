"""Money: integer cents inside, decimal strings outside, never a float."""

import re

MOST_CENTS = 2**53  # exact in every JSON reader and in Lua; the maximum total of an order
_PRICE = re.compile(r"([0-9]{1,14})(?:\.([0-9]{1,2}))?")


def to_decimal(cents: int) -> str:
    """99999 -> '999.99'."""
    return f"{cents // 100}.{cents % 100:02d}"


def to_cents(text: str) -> int:
    """'9.9' -> 990. Raises ValueError unless it is an amount from 0 to MOST_CENTS with at most two decimals."""
    match = _PRICE.fullmatch(text)
    if match is None:
        raise ValueError(f"not an amount: {text!r} (like 9.99)")
    whole, part = match.groups()
    cents = int(whole) * 100 + int((part or "").ljust(2, "0"))
    if cents > MOST_CENTS:
        raise ValueError(f"{text} is too much: at most {to_decimal(MOST_CENTS)}")
    return cents
