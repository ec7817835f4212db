"""Reads the topic `dead-letters`: the source of each letter, its reason, and whether it still needs action.

It joins no consumer group. The name of a letter is its `partition:offset` in that topic.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

import asyncpg

from consumers.replay.reader import ReadProgress, topic_reader
from infra.settings import Settings
from sale.orders import OrderRow, read_rows
from sale.tables.queries import SQL
from schemas.clock import to_ms
from schemas.codec import Undecodable, decode
from schemas.events import AnyEvent, OrderPlaced
from schemas.ids import OrderId, parse_order_id
from schemas.order_state import TERMINAL, Status
from schemas.topics import DEAD_LETTERS

FIELDS = ("letter", "topic", "partition", "offset", "reason", "key", "type", "product", "user")
ROWS_AT_ONCE = 5_000
RecordPlace = tuple[int, int, int]  # partition, offset, append time (ms): offsets start again after the log is wiped


class DlqError(Exception):
    """The request is invalid or the letter does not exist; the text is for the user."""


@dataclass(frozen=True, slots=True)
class Redriven:
    """When and by whom a letter was sent again, and the new order in place of a failed one."""

    who: str
    at_ms: int
    new_order_id: str | None
    ended_at_offset: int | None = None  # end of the letter's partition before its record was sent


@dataclass(frozen=True, slots=True)
class Resolved:
    """When, by whom and why a letter was closed."""

    who: str
    at_ms: int
    why: str


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter. `partition` and `offset` are its own; `topic` and `source_*` are those of the original record."""

    partition: int
    offset: int
    at_ms: int
    topic: str
    source_partition: int
    source_offset: int
    reason: str
    key: bytes
    value: bytes
    cut: bool
    redriven: Redriven | None
    resolved: Resolved | None = None
    came_back_from: str | None = None  # the letter whose redrive produced this one
    ended: Status | None = None  # its order has ended since: sending the record again has no effect

    @property
    def name(self) -> str:
        return _name(self.place)

    @property
    def place(self) -> RecordPlace:
        return self.partition, self.offset, self.at_ms

    @property
    def open(self) -> bool:
        """Whether it still needs action."""
        return self.redriven is None and self.resolved is None and self.ended is None

    @property
    def event(self) -> AnyEvent | None:
        """The event of the record; None if the current code cannot decode it."""
        try:
            return decode(self.value)
        except Undecodable:
            return None

    @property
    def order_id(self) -> OrderId | None:
        """From the event, else from the key: an undecodable record may still have a key."""
        return parse_order_id(getattr(self.event, "order_id", "") or self.key.decode(errors="replace"))

    def field(self, name: str) -> str:
        """One of FIELDS as text; empty if the record lacks it."""
        match name:
            case "letter":
                return self.name
            case "topic" | "reason":
                return str(getattr(self, name))
            case "partition" | "offset":
                return str(getattr(self, f"source_{name}"))
            case "key":
                return self.key.decode(errors="replace")
            case "type":
                event = self.event
                return str(event.__struct_config__.tag) if event else "unreadable"
            case _:
                return str(getattr(self.event, f"{name}_id", ""))


@dataclass(frozen=True, slots=True)
class Condition:
    """`field=text` (equal) or `field~text` (contains, ignoring case)."""

    field: str
    contains: bool
    text: str

    def holds(self, letter: Letter) -> bool:
        value = letter.field(self.field)
        return self.text.lower() in value.lower() if self.contains else value == self.text


def condition(text: str) -> Condition:
    """Raises ValueError with the valid fields."""
    at = min((text.index(sign) for sign in "=~" if sign in text), default=-1)
    if at < 1 or text[:at] not in FIELDS:
        raise ValueError(f"{text!r}: FIELD=TEXT (equal) or FIELD~TEXT (contains); FIELD is {', '.join(FIELDS)}")
    return Condition(text[:at], text[at] == "~", text[at + 1 :])


async def letters(settings: Settings, pool: asyncpg.Pool) -> AsyncIterator[Letter]:
    """Yields every kept letter, in order by partition, without `ended`. Raises KafkaError, OSError or a Postgres error."""
    redriven = {_place(row): _redriving(row) for row in await pool.fetch(SQL.redriven_letters)}
    resolved = {_place(row): _resolving(row) for row in await pool.fetch(SQL.resolved_letters)}
    comebacks = _Comebacks({of.new_order_id: _name(place) for place, of in redriven.items() if of.new_order_id})
    async with topic_reader(settings) as reader:
        spans = await reader.spans([DEAD_LETTERS.name], None, None)
        progress = ReadProgress(sum(span.size for span in spans.values()))
        if not progress.total:  # a consumer without partitions would never stop
            return
        async for records in reader.read(spans, progress):
            for record in records:
                yield comebacks.mark(_letter(record, redriven, resolved))


async def matching(
    settings: Settings, pool: asyncpg.Pool, where: Sequence[Condition], *, closed_too: bool = False
) -> list[Letter]:
    """The letters that match all conditions, oldest first; letters that need no action only on request."""
    found = [
        letter
        async for letter in letters(settings, pool)
        if (closed_too or letter.open) and all(condition.holds(letter) for condition in where)
    ]
    judged = [letter for letter in await _with_ends(pool, found) if closed_too or letter.open]
    return sorted(judged, key=lambda letter: (letter.at_ms, letter.partition, letter.offset))


async def find_letter(settings: Settings, pool: asyncpg.Pool, name: str) -> Letter:
    """The letter with that name. Raises DlqError."""
    async for letter in letters(settings, pool):
        if letter.name == name:
            return (await _with_ends(pool, [letter]))[0]
    raise DlqError(f"there is no letter {name} (any more)")


async def resolve(settings: Settings, pool: asyncpg.Pool, name: str, who: str, why: str) -> Letter:
    """Closes a letter for good; the first reason stays. Raises DlqError."""
    letter = await find_letter(settings, pool, name)
    await pool.execute(SQL.resolve_letter, *letter.place, who, why)
    return await find_letter(settings, pool, name)


async def _with_ends(pool: asyncpg.Pool, found: Sequence[Letter]) -> list[Letter]:
    rows: dict[OrderId, OrderRow] = {}
    for first in range(0, len(found), ROWS_AT_ONCE):
        ids = {letter.order_id for letter in found[first : first + ROWS_AT_ONCE]}
        rows |= await read_rows(pool, [order_id for order_id in ids if order_id])
    ends = {order_id: row.status for order_id, row in rows.items() if row.status in TERMINAL}
    return [replace(letter, ended=_end(letter, ends.get(letter.order_id or OrderId("")))) for letter in found]


def _end(letter: Letter, status: Status | None) -> Status | None:
    """The end of its order, if nothing is left to do. A redrive can still replace an order that failed because of its letter."""
    return None if status is Status.FAILED and isinstance(letter.event, OrderPlaced) else status


@dataclass(slots=True)
class _Comebacks:
    """Sees the letters of one partition in order; recognises a record that failed again by its bytes or its order."""

    made: Mapping[str, str]  # new orders in place of failed ones, and the letters of those
    _sent: dict[tuple[int, bytes], tuple[str, int]] = field(default_factory=dict)

    def mark(self, letter: Letter) -> Letter:
        content = letter.partition, sha256(b"\0".join((letter.topic.encode(), letter.key, letter.value))).digest()
        name, sent_before = self._sent.get(content, (None, 0))
        came_back_from = name if letter.offset >= sent_before else None
        came_back_from = came_back_from or self.made.get(letter.field("key"))
        if letter.redriven and letter.redriven.ended_at_offset is not None:
            self._sent[content] = letter.name, letter.redriven.ended_at_offset
        return replace(letter, came_back_from=came_back_from)


def _name(place: RecordPlace) -> str:
    return f"{place[0]}:{place[1]}"


def _place(row: asyncpg.Record) -> RecordPlace:
    return row["partition"], row["offset"], row["appended_at_ms"]


def _letter(record: Any, redriven: Mapping[RecordPlace, Redriven], resolved: Mapping[RecordPlace, Resolved]) -> Letter:
    headers = {name: value.decode(errors="replace") for name, value in record.headers}
    place = (record.partition, record.offset, record.timestamp)
    return Letter(
        partition=record.partition,
        offset=record.offset,
        at_ms=record.timestamp,
        topic=headers.get("source-topic", ""),
        source_partition=_number(headers.get("source-partition")),
        source_offset=_number(headers.get("source-offset")),
        reason=headers.get("reason", ""),
        key=record.key or b"",
        value=record.value or b"",
        cut="cut-from-bytes" in headers,
        redriven=redriven.get(place),
        resolved=resolved.get(place),
    )


def _redriving(row: asyncpg.Record) -> Redriven:
    return Redriven(row["who"], _ms(row), row["new_order_id"], row["ended_at_offset"])


def _resolving(row: asyncpg.Record) -> Resolved:
    return Resolved(row["who"], _ms(row), row["why"])


def _ms(row: asyncpg.Record) -> int:
    return to_ms(row["at"])


def _number(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdecimal() else -1
