"""Checks and cleans text from outside, so that every store takes it: from people, providers and servers.

Postgres refuses NUL, JSON refuses lone surrogates, and a terminal obeys control characters; `str.isprintable` is false for
all of them. It is also false for joiners and most spaces, which names need: text from people is checked by `is_plain`.
"""

import unicodedata

UNWANTED = frozenset({"Cc", "Cs", "Zl", "Zp"})  # controls, surrogates, line and paragraph separators
INVISIBLE = frozenset({"Cf", "Zs"})
# Embeddings, overrides and isolates (UAX 9) also reorder the text around them; the marks U+061C, U+200E and U+200F do not.
TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def is_plain(text: str, most: int) -> bool:
    """1 to `most` characters in any script that one line can show as intended, and not only spaces."""
    unwanted = (unicodedata.category(character) in UNWANTED or character in TURNING for character in text)
    visible = (unicodedata.category(character) not in INVISIBLE for character in text)
    return len(text) <= most and not any(unwanted) and any(visible)


def is_storable(text: str, most: int) -> bool:
    """1 to `most` characters, all printable."""
    return 0 < len(text) <= most and text.isprintable()


def cleaned(text: str, most: int) -> str:
    """The first `most` characters, with U+FFFD for each one that is not printable."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text[:most])
