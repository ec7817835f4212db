"""Text from outside, judged and made fit for every store: what people type, and what providers and servers answer.

Postgres refuses NUL, JSON lone surrogates, and a terminal obeys controls; none of them is `str.isprintable`. Neither are
joiners and most spaces, which names need: what people type is judged by `is_plain`.
"""

import unicodedata

UNWANTED = frozenset({"Cc", "Cs", "Zl", "Zp"})  # controls, surrogates, separators of lines and paragraphs
INVISIBLE = frozenset({"Cf", "Zs"})
# Embeddings, overrides and isolates (UAX 9) turn the text around them too; the marks U+061C, U+200E and U+200F do not.
TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def is_plain(text: str, most: int) -> bool:
    """1 to `most` characters that can be shown on one line as they were meant, in any script, and not spaces alone."""
    unwanted = (unicodedata.category(character) in UNWANTED or character in TURNING for character in text)
    visible = (unicodedata.category(character) not in INVISIBLE for character in text)
    return len(text) <= most and not any(unwanted) and any(visible)


def is_storable(text: str, most: int) -> bool:
    """1 to `most` characters, each of them printable."""
    return 0 < len(text) <= most and text.isprintable()


def cleaned(text: str, most: int) -> str:
    """The first `most` characters, with U+FFFD in the place of what is not printable."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text[:most])
