"""Normalises and validates names, email addresses and passwords; an invalid one raises ValueError."""

import unicodedata

import email_validator

from infra.text import is_plain

NAME_MAX_CHARACTERS = 100
EMAIL_MAX_CHARACTERS = 254
PASSWORD_MIN_BYTES, PASSWORD_MAX_BYTES = 8, 72  # bcrypt reads no further than 72

# Reserved domains such as .invalid and .test are allowed: we send no mail, and load tests and demos use them.
email_validator.SPECIAL_USE_DOMAIN_NAMES.clear()


def clean_name(text: str) -> str:
    """The name without surrounding spaces."""
    name = text.strip()
    if not is_plain(name, NAME_MAX_CHARACTERS):
        raise ValueError(f"A name has 1 to {NAME_MAX_CHARACTERS} characters and no control characters.")
    return name


def clean_email(text: str) -> str:
    """The email address of a new account."""
    email = known_email(text)
    try:
        email_validator.validate_email(
            email, strict=True, allow_smtputf8=False, check_deliverability=False, globally_deliverable=False
        )
    except email_validator.EmailNotValidError:
        raise ValueError("This is not an email address.") from None
    return email


def known_email(text: str) -> str:
    """The key for looking up an account. It lowers ASCII only: other characters would become ASCII (U+212A becomes `k`)."""
    email = text.strip(" ")
    if not (email.isascii() and email.isprintable() and 1 <= len(email) <= EMAIL_MAX_CHARACTERS):
        raise ValueError("This is not an email address.")
    return email.lower()


def password_spellings(text: str, *, minimum: int = PASSWORD_MIN_BYTES) -> tuple[bytes, ...]:
    """The bytes to hash, then the bytes that older versions hashed, before passwords were normalised."""
    secret = _normalised(text)
    if not _fits(secret, minimum):
        raise ValueError(f"A password has {PASSWORD_MIN_BYTES} to {PASSWORD_MAX_BYTES} bytes and no NUL.")
    as_typed = text.encode()
    return (secret,) if as_typed == secret or not _fits(as_typed, minimum) else (secret, as_typed)


def _normalised(text: str) -> bytes:
    """OpaqueString of RFC 8265: every kind of space becomes one kind, and letters are composed (NFC)."""
    spaced = "".join(" " if unicodedata.category(character) == "Zs" else character for character in text)
    try:
        return unicodedata.normalize("NFC", spaced).encode()
    except UnicodeEncodeError:  # a lone surrogate
        raise ValueError("The password is not text.") from None


def _fits(secret: bytes, minimum: int) -> bool:
    return minimum <= len(secret) <= PASSWORD_MAX_BYTES and b"\0" not in secret
