"""Text from outside (a provider's answer, a server's error), judged and made fit for every store: printable, of bounded length.

Postgres refuses NUL, JSON lone surrogates, and a terminal obeys controls; none of them is `str.isprintable`.
"""


def is_storable(text: str, most: int) -> bool:
    """1 to `most` characters, each of them printable."""
    return 0 < len(text) <= most and text.isprintable()


def cleaned(text: str, most: int) -> str:
    """The first `most` characters, with U+FFFD in the place of what is not printable."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text[:most])
