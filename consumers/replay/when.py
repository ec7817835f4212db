"""What an analyst types as a bound in, an offset or a moment in milliseconds since the epoch out."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta

_AGO = re.compile(r"(\d+)(s|m|h|d)")
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
        if ago := _AGO.fullmatch(text):
            return _moment(now - timedelta(**{_UNITS[ago[2]]: int(ago[1])}))
        if re.fullmatch(r"\d{1,2}:\d{2}(:.+)?", text):
            clock = time.fromisoformat(text.zfill(5) if ":" not in text[3:] else text)
            return _moment(datetime.combine(now.astimezone(UTC).date(), clock, clock.tzinfo or UTC))
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is neither an offset nor a time; write {EXAMPLES}") from None
    return _moment(moment if moment.tzinfo else moment.replace(tzinfo=UTC))


def _moment(at: datetime) -> Moment:
    ms = (at - datetime.fromtimestamp(0, UTC)) // timedelta(milliseconds=1)
    if ms < 0:
        raise ValueError
    return Moment(ms)


def show_ms(ms: int) -> str:
    """ISO 8601 with milliseconds, UTC."""
    at = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=ms)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
