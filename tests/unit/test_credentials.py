"""Names, addresses and passwords as people type them: every script gets in, and nobody is taken for somebody else."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.text import is_plain
from sale.accounts.credentials import clean_email, clean_name, known_email, password_spellings


@pytest.mark.parametrize(
    "name",
    [
        "Arya",
        "می\u200cخواهم",  # a zero-width non-joiner, as Persian is written
        "👩\u200d🚀 Sally",  # one picture of three characters
        "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",  # the flag of Scotland
        "Jean\u00a0Valjean",
        "山田\u3000太郎",
        "क्\u200dष",
        "O\u2019Neil-D\u2019Arc, 3rd",
        "\u200fאריה",  # a mark, which turns nothing around it
        "🫩",  # newer than this Python's tables, perhaps
    ],
)
def test_a_name_in_any_script_is_a_name_as_it_was_written(name: str) -> None:
    assert clean_name(f" {name} ") == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "\u3000\u00a0",
        "\u200d",
        "a\0b",
        "a\r\nb",
        "a\tb",
        "\x1b[31mred",
        "a\x7f",
        "a\x85b",
        "a\u2028b",
        "a\ud800b",
        *(f"a{turning}b" for turning in "\u202a\u202b\u202d\u202e\u2066\u2067\u2068"),
        "x" * 101,
    ],
    ids=repr,
)
def test_what_breaks_a_line_or_turns_text_around_is_no_name(name: str) -> None:
    with pytest.raises(ValueError, match="1 to 100"):
        clean_name(name)


@given(st.text(max_size=120))
def test_a_name_that_is_taken_can_be_stored_and_logged(text: str) -> None:
    if is_plain(text, 100):
        assert "\0" not in text
        assert len(text.encode().decode().splitlines()) == 1


@pytest.mark.parametrize(
    ("typed", "known_by"),
    [
        (" Arya@Winterfell.Example ", "arya@winterfell.example"),
        ("o'neil+sale@x.example", "o'neil+sale@x.example"),
        ("buyer-1@load.invalid", "buyer-1@load.invalid"),
        ("a@localhost", "a@localhost"),
        ("a@b", "a@b"),
        ("x" * 64 + "@x.example", "x" * 64 + "@x.example"),
    ],
)
def test_an_address_is_one_in_any_case_of_letters(typed: str, known_by: str) -> None:
    assert clean_email(typed) == known_email(typed) == known_by


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "nobody",
        "a@",
        "@b",
        "..x@-.-",
        ".a@b.example",
        "a.@b.example",
        "a..b@c.example",
        "a@-b.example",
        "a@b-.example",
        "a@b..example",
        "a@b.example.",
        "a@b_c.example",
        '"a b"@c.example',
        "a@[127.0.0.1]",
        "a b@c.example",
        "a@b@c.example",
        "x" * 65 + "@x.example",
        "a@" + "x" * 64 + ".example",
        "a@" + "b." * 130 + "example",
        "a@b\r\n",
        "a\0@b.example",
    ],
    ids=lambda typed: repr(typed)[:30],
)
def test_what_nobody_has_as_an_address_is_none(typed: str) -> None:
    with pytest.raises(ValueError, match="not an email address"):
        clean_email(typed)


@pytest.mark.parametrize(
    "typed",
    [
        "\u212aing@x.example",
        "ki\u017fs@x.example",
        "\u0130@x.example",
        "ａ@x.example",
        "a＠x.example",
        "e\u0301@x.example",
        "a@x\u3002example",
        "\u00a0a@x.example",
        "\u200da@x.example",
        "müller@x.example",
        "a@münchen.example",
    ],
)
def test_what_only_becomes_ascii_is_nobodys_address(typed: str) -> None:
    """The Kelvin sign is a `k` once lowered or normalised: it must not be somebody's account."""
    for judge in (clean_email, known_email):
        with pytest.raises(ValueError, match="not an email address"):
            judge(typed)


def test_a_password_is_the_same_composed_and_decomposed_and_with_any_space() -> None:
    composed, decomposed = "Caf\u00e9 am Eck", "Cafe\u0301 am\u00a0Eck"
    assert password_spellings(composed) == (composed.encode(),)
    assert password_spellings(decomposed) == (composed.encode(), decomposed.encode())
    assert password_spellings("Cafe am Eck") == (b"Cafe am Eck",)


def test_what_people_tell_apart_stays_apart() -> None:
    """Compatibility (NFKC) would make these one."""
    assert len({password_spellings(f"password {end}")[0] for end in ("2", "\u00b2", "\u2461", "\uff12")}) == 4


def test_a_password_has_its_length_as_it_is_hashed() -> None:
    """What only fits decomposed or only composed is judged composed; no spelling is longer than bcrypt reads."""
    assert password_spellings("e\u0301" * 36) == (("\u00e9" * 36).encode(),)
    for text in ("short77", "e\u0301" * 3, "x" * 73, "nul\0 in the middle", "\ud800 surrogate"):
        with pytest.raises(ValueError, match=r"8 to 72|not text"):
            password_spellings(text)


@given(st.text(max_size=30))
def test_the_spelling_that_is_hashed_does_not_depend_on_how_it_was_typed(text: str) -> None:
    first: set[object] = set()
    for form in ("NFC", "NFD"):
        try:
            first.add(password_spellings(unicodedata.normalize(form, text))[0])
        except ValueError:
            first.add(None)
    assert len(first) == 1
