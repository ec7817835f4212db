"""Money is exact: cents inside, a decimal string outside."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.money import MOST_CENTS, to_cents, to_decimal


@given(st.integers(0, MOST_CENTS))
def test_cents_survive_the_way_out_and_back(cents: int) -> None:
    """No amount changes by being shown and read again."""
    assert to_cents(to_decimal(cents)) == cents


@pytest.mark.parametrize(("text", "cents"), [("0", 0), ("9", 900), ("9.9", 990), ("9.99", 999), ("007.5", 750)])
def test_short_spellings_are_read(text: str, cents: int) -> None:
    assert to_cents(text) == cents


def test_amounts_go_to_two_to_the_fifty_third() -> None:
    """A thousand million is an amount like any other; beyond 2^53 readers of JSON would round."""
    assert to_cents("1000000000.00") == 100_000_000_000
    assert to_cents("90071992547409.92") == 2**53
    for text in ("90071992547409.93", "99999999999999"):
        with pytest.raises(ValueError, match=r"too much: at most 90071992547409\.92"):
            to_cents(text)


@given(st.text() | st.from_regex(r"-?\d*\.?\d*(e\d)?", fullmatch=True))
def test_what_is_read_is_an_amount_and_nothing_else_raises_anything_but_value_error(text: str) -> None:
    """Never a guess: a sign, an exponent, three decimals or a blank is not an amount."""
    try:
        cents = to_cents(text)
    except ValueError:
        return
    assert cents >= 0
    whole, _, part = text.partition(".")
    assert cents == int(whole) * 100 + int(part.ljust(2, "0"))
    assert len(part) <= 2


@pytest.mark.parametrize(
    "text", ["", " 1", "1 ", "-1", "+1", "1.", ".5", "1.999", "1e3", "1,5", "NaN", "1_0", "9.9\n", "٣", "３.5", "9.๙"]
)
def test_nearly_amounts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an amount"):
        to_cents(text)
