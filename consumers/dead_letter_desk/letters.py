"""Topic `dead-letters` in, letters out: where each came from, why it is there, and whether it was sent again already.

Read without a group. A letter is named `partition:offset` of its own topic.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg

from consumers.replay.reader import Progress, topic_reader
from infra.postgres.queries import SQL
from infra.settings import Settings
from schemas.codec import Undecodable, decode
from schemas.events import AnyEvent
from schemas.topics import DEAD_LETTERS

FIELDS = ("letter", "topic", "partition", "offset", "reason", "key", "type", "product", "user")


class DlqError(Exception):
    """What was asked for makes no sense, or is not there; the text is for whoever asked."""


@dataclass(frozen=True, slots=True)
class Redriven:
    """When and by whom a letter was sent again, and the order made in place of a failed one."""

    who: str
    at_ms: int
    new_order_id: str | None


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter. `partition` and `offset` are its own; `topic` and `source_*` are the record's it came from."""

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

    @property
    def name(self) -> str:
        return f"{self.partition}:{self.offset}"

    @property
    def event(self) -> AnyEvent | None:
        """What the record says, where today's code can read it."""
        try:
            return decode(self.value)
        except Undecodable:
            return None

    def field(self, name: str) -> str:
        """One of FIELDS as text; empty where the record has none."""
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
    """`field=text` (equal) or `field~text` (contains, whatever the case)."""

    field: str
    contains: bool
    text: str

    def holds(self, letter: Letter) -> bool:
        value = letter.field(self.field)
        return self.text.lower() in value.lower() if self.contains else value == self.text


def conditions(texts: Sequence[str]) -> list[Condition]:
    """Raises DlqError naming what may be asked for."""
    return [_condition(text) for text in texts]


def _condition(text: str) -> Condition:
    at = min((text.index(sign) for sign in "=~" if sign in text), default=-1)
    if at < 1 or text[:at] not in FIELDS:
        raise DlqError(f"--where {text!r}: FIELD=TEXT (equal) or FIELD~TEXT (contains); FIELD is {', '.join(FIELDS)}")
    return Condition(text[:at], text[at] == "~", text[at + 1 :])


async def letters(settings: Settings, pool: asyncpg.Pool) -> AsyncIterator[Letter]:
    """Every letter that is kept now, by partition in order. Raises KafkaError, OSError or a Postgres error."""
    redriven = {(row["partition"], row["offset"], row["appended_at_ms"]): row for row in await _redriven(pool)}
    async with topic_reader(settings) as reader:
        spans = await reader.spans([DEAD_LETTERS.name], None, None)
        progress = Progress(sum(span.size for span in spans.values()))
        if not progress.total:  # assigned to nothing, a consumer would never stop
            return
        async for records in reader.read(spans, progress):
            for record in records:
                yield _letter(record, redriven.get((record.partition, record.offset, record.timestamp)))


async def matching(
    settings: Settings, pool: asyncpg.Pool, where: Sequence[Condition], *, redriven_too: bool = False
) -> list[Letter]:
    """Those for which every condition holds, oldest first; those sent again already only if asked for."""
    found = [
        letter
        async for letter in letters(settings, pool)
        if (redriven_too or letter.redriven is None) and all(condition.holds(letter) for condition in where)
    ]
    return sorted(found, key=lambda letter: (letter.at_ms, letter.partition, letter.offset))


async def one(settings: Settings, pool: asyncpg.Pool, name: str) -> Letter:
    """The letter of that name. Raises DlqError."""
    partition, _, offset = name.partition(":")
    if not (partition.isdecimal() and offset.isdecimal()):
        raise DlqError(f"{name!r} is no letter's name: PARTITION:OFFSET, as `thrones dlq list` shows them")
    async for letter in letters(settings, pool):
        if (letter.partition, letter.offset) == (int(partition), int(offset)):
            return letter
    raise DlqError(f"there is no letter {name} (any more)")


async def _redriven(pool: asyncpg.Pool) -> list[asyncpg.Record]:
    return list(await pool.fetch(SQL.redriven_letters))


def _letter(record: Any, redriven: asyncpg.Record | None) -> Letter:
    headers = {name: value.decode(errors="replace") for name, value in record.headers}
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
        redriven=None if redriven is None else _redriving(redriven),
    )


def _redriving(row: asyncpg.Record) -> Redriven:
    return Redriven(row["who"], int(row["at"].timestamp() * 1000), row["new_order_id"])


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else -1
