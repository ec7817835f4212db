"""Parses a bound that an analyst types: an offset, or a time in milliseconds since the epoch."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta

import typer

_AGO = re.compile(r"([0-9]+)(s|m|h|d)")
_CLOCK = re.compile(r"[0-9]{2}:[0-9]{2}(:.+)?")
_OFFSET = re.compile(r"(offset:)?([0-9]+)")
_EPOCH = datetime.fromtimestamp(0, UTC)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
LARGEST_OFFSET = 2**63 - 1
# A bare number in one of these ranges is more likely a Unix time (2001 to 2100) in that unit than an offset.
UNIX_FROM_S, UNIX_TO_S = 1_000_000_000, 4_102_444_800
UNIX_UNITS = {"seconds": 1, "milliseconds": 1_000, "microseconds": 1_000_000, "nanoseconds": 1_000_000_000}
EXAMPLES = (
    "an offset (1500), a time (2026-11-22T12:00:03.250Z; UTC without a zone), a time of today (12:00:03.250), "
    "or how long ago (15m)"
)


@dataclass(frozen=True, slots=True)
class Offset:
    """A position in every partition."""

    value: int


@dataclass(frozen=True, slots=True)
class AppendTime:
    """A broker append time: milliseconds since the epoch."""

    ms: int


Bound = Offset | AppendTime


def bound(text: str) -> Bound:
    """For `typer.Option(parser=...)`."""
    try:
        return parse_bound(text, datetime.now(UTC))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def parse_bound(text: str, now: datetime) -> Bound:
    """Raises ValueError with examples for any other text."""
    text = text.strip()
    if number := _OFFSET.fullmatch(text):
        return _offset(int(number[2]), sure=bool(number[1]))
    try:
        at = _time(text, now)
    except ValueError:
        raise ValueError(f"{text!r} is neither an offset nor a time; write {EXAMPLES}") from None
    except OverflowError:  # before the year 1, or after 9999
        at = None
    if at is None or at < _EPOCH:
        raise ValueError(f"{text!r} is out of range: records have times of 1970 to 9999; without a bound all are read")
    return AppendTime((at - _EPOCH) // timedelta(milliseconds=1))


def _offset(value: int, *, sure: bool) -> Offset:
    if value > LARGEST_OFFSET:
        raise ValueError(f"no offset is above {LARGEST_OFFSET}")
    for unit, a_second in UNIX_UNITS.items():
        if not sure and UNIX_FROM_S * a_second <= value < UNIX_TO_S * a_second:
            at = show_ms(value * 1_000 // a_second)
            raise ValueError(
                f"{value} looks like a Unix time in {unit}: write {at}, or offset:{value} if it is an offset"
            )
    return Offset(value)


def _time(text: str, now: datetime) -> datetime:
    if ago := _AGO.fullmatch(text):
        return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    if _CLOCK.fullmatch(text):
        clock = time.fromisoformat(text)
        return datetime.combine(now.astimezone(UTC).date(), clock, clock.tzinfo or UTC)
    at = datetime.fromisoformat(text)
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)


def show_ms(ms: int) -> str:
    """ISO 8601 with milliseconds, UTC."""
    at = _EPOCH + timedelta(milliseconds=ms)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
