"""Integer cents inside, a decimal string outside, never a float."""

import re

_PRICE = re.compile(r"(\d{1,9})(?:\.(\d{1,2}))?")


def to_decimal(cents: int) -> str:
    """99999 -> '999.99'."""
    return f"{cents // 100}.{cents % 100:02d}"


def to_cents(text: str) -> int:
    """'9.9' -> 990. Raises ValueError for anything but a non-negative amount with at most two decimals."""
    match = _PRICE.fullmatch(text)
    if match is None:
        raise ValueError(f"not an amount: {text!r} (like 9.99)")
    whole, part = match.groups()
    return int(whole) * 100 + int((part or "").ljust(2, "0"))
