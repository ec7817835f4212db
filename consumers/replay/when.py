"""What an analyst types as a bound in, an offset or a moment in milliseconds since the epoch out."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta

_AGO = re.compile(r"(\d+)(s|m|h|d)")
_CLOCK = re.compile(r"\d{2}:\d{2}(:.+)?")
_EPOCH = datetime.fromtimestamp(0, UTC)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
EXAMPLES = (
    "an offset (1500), a time (2026-11-22T12:00:03.250Z; UTC without a zone), a time of today (12:00:03.250), "
    "or how long ago (15m)"
)


@dataclass(frozen=True, slots=True)
class Offset:
    """A position in every partition."""

    value: int


@dataclass(frozen=True, slots=True)
class Moment:
    """A broker append time: milliseconds since the epoch."""

    ms: int


Bound = Offset | Moment


def parse_bound(text: str, now: datetime) -> Bound:
    """Raises ValueError, with examples, for anything else."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return Offset(int(text))
    try:
        return Moment(_ms(text, now))
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is neither an offset nor a time; write {EXAMPLES}") from None


def _ms(text: str, now: datetime) -> int:
    if ago := _AGO.fullmatch(text):
        at = now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    elif _CLOCK.fullmatch(text):
        clock = time.fromisoformat(text)
        at = datetime.combine(now.astimezone(UTC).date(), clock, clock.tzinfo or UTC)
    else:
        at = datetime.fromisoformat(text)
        at = at if at.tzinfo else at.replace(tzinfo=UTC)
    ms = (at - _EPOCH) // timedelta(milliseconds=1)
    if ms < 0:
        raise ValueError("before 1970")
    return ms


def show_ms(ms: int) -> str:
    """ISO 8601 with milliseconds, UTC."""
    at = _EPOCH + timedelta(milliseconds=ms)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
