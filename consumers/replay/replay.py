"""`thrones replay`: copies records of topics into a file and returns a summary. It has no side effects on the broker."""

import asyncio
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from infra.settings import Settings

from .output import STDOUT, Output, aside_of, output, size_of
from .reader import ReadProgress, Record, ReplayError, TopicReader, topic_reader
from .table import to_table
from .when import Bound, show_ms

ROWS_AT_ONCE = 50_000  # one row group: bounds memory and still compresses well
PROGRESS_INTERVAL_S = 0.5
Say = Callable[[ReadProgress], None]


class Stretch(msgspec.Struct, frozen=True):
    """The offsets read from one partition; `end` is exclusive."""

    partition: int
    start: int
    end: int


class TopicSummary(msgspec.Struct):
    records: int = 0
    written: int = 0
    undecodable: int = 0
    first_at_ms: int | None = None  # broker append times
    last_at_ms: int | None = None
    partitions: list[Stretch] = []

    def count(self, appended_ms: int) -> None:
        self.written += 1
        if self.first_at_ms is None or appended_ms < self.first_at_ms:
            self.first_at_ms = appended_ms
        if self.last_at_ms is None or appended_ms > self.last_at_ms:
            self.last_at_ms = appended_ms

    def put_aside(self) -> None:
        self.written -= 1
        self.undecodable += 1


class Summary(msgspec.Struct):
    """The result of a replay; `records` = `written` + `undecodable` (+ records with other keys, if --key is given)."""

    out: str
    records: int
    written: int
    undecodable: int
    undecodable_file: str | None
    bytes: int | None
    seconds: float
    peak_mb: int  # peak memory of this process
    topics: dict[str, TopicSummary]


class Request(msgspec.Struct, frozen=True):
    """The arguments of a replay."""

    topics: tuple[str, ...]
    out: str = STDOUT
    start: Bound | None = None
    end: Bound | None = None
    key: str | None = None
    by_date: bool = False
    force: bool = False


async def replay(settings: Settings, request: Request, say: Say | None = None) -> Summary:
    """Raises ReplayError; KafkaError or OSError if the broker does not answer. No file is left after an error."""
    started = time.monotonic()
    with output(request.out, by_date=request.by_date, force=request.force) as out:
        async with topic_reader(settings) as reader:
            topics = await _copy(reader, request, out, say)
    written = sum(topic.written for topic in topics.values())
    undecodable = sum(topic.undecodable for topic in topics.values())
    to_file = request.out != STDOUT
    aside = aside_of(Path(request.out), request.by_date) if to_file and undecodable else None
    return Summary(
        out=request.out,
        records=sum(topic.records for topic in topics.values()),
        written=written,
        undecodable=undecodable,
        undecodable_file=str(aside) if aside else None,
        bytes=size_of(Path(request.out)) if to_file else None,
        seconds=round(time.monotonic() - started, 3),
        peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        topics=topics,
    )


async def _copy(reader: TopicReader, request: Request, out: Output, say: Say | None) -> dict[str, TopicSummary]:
    spans = await reader.spans(request.topics, request.start, request.end)
    topics = {name: TopicSummary() for name in dict.fromkeys(request.topics)}
    for tp, span in spans.items():
        topics[tp.topic].partitions.append(Stretch(tp.partition, span.start, span.end))
    progress = ReadProgress(total=sum(span.size for span in spans.values()))
    key = None if request.key is None else request.key.encode()
    said = 0.0
    waiting: list[Record] = []
    async for batch in reader.read(spans, progress):
        topics[batch[0].topic].records += len(batch)
        waiting += batch if key is None else [record for record in batch if record.key == key]
        if len(waiting) >= ROWS_AT_ONCE:
            await _aside(_write, waiting, out, topics)
            waiting = []
        if say and time.monotonic() - said > PROGRESS_INTERVAL_S:
            said = time.monotonic()
            say(progress)
    _write(waiting, out, topics)
    if say:
        say(progress)
    if request.key is not None and not any(topic.written or topic.undecodable for topic in topics.values()):
        raise ReplayError(f"no record with key {request.key!r} in this stretch of {', '.join(topics)}")
    return topics


async def _aside(write: Callable[..., None], *arguments: object) -> None:
    """Writes in a thread while fetching continues. It always waits for the thread, because the file is closed afterwards."""
    writing = asyncio.ensure_future(asyncio.to_thread(write, *arguments))
    try:
        await asyncio.shield(writing)
    except asyncio.CancelledError:
        await writing
        raise


def _write(records: Sequence[Record], out: Output, topics: dict[str, TopicSummary]) -> None:
    if not records:
        return
    table, aside = to_table(records)
    out.write(table, aside)
    for record in records:
        topics[record.topic].count(record.timestamp)
    for odd in aside:
        topics[odd.record.topic].put_aside()


def show(summary: Summary) -> str:
    """The summary as text."""
    lines = [
        f"{name:<16}{topic.written:>10} written{topic.undecodable:>8} undecodable   "
        f"{'-' if topic.first_at_ms is None else show_ms(topic.first_at_ms)} .. "
        f"{'-' if topic.last_at_ms is None else show_ms(topic.last_at_ms)}"
        for name, topic in summary.topics.items()
    ]
    size = f", {summary.bytes / 1e6:.1f} MB" if summary.bytes is not None else ""
    pace = summary.records / summary.seconds if summary.seconds else 0.0
    lines.append(
        f"{summary.records} records read, {summary.written} written to {summary.out}{size} in {summary.seconds:.1f} s "
        f"({pace:,.0f}/s, at most {summary.peak_mb} MB of memory)"
    )
    if summary.undecodable_file:
        lines.append(f"kept aside: {summary.undecodable} records that are no events, in {summary.undecodable_file}")
    return "\n".join(lines)
