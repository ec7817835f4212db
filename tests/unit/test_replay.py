"""Replay without a broker: bounds, columns, and files that are whole or not there."""

import asyncio
import csv
import json
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pyarrow.parquet as pq
import pytest
from aiokafka import TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from consumers.replay import reader
from consumers.replay.output import output, size_of
from consumers.replay.reader import ReplayError
from consumers.replay.table import EVENTS, SCHEMA, Aside, to_table
from consumers.replay.when import AppendTime, Bound, Offset, parse_bound, show_ms
from schemas.codec import encode
from schemas.events import AnyEvent
from tests.events import events

from .log_history import NOON_MS, FakeRecord, a_small_sale

NOW = datetime(2026, 11, 22, 12, 15, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("0", Offset(0)),
        ("1500", Offset(1500)),
        ("2026-11-22T12:00:00Z", AppendTime(NOON_MS)),
        ("2026-11-22 12:00:00.250", AppendTime(NOON_MS + 250)),
        ("2026-11-22T13:00+01:00", AppendTime(NOON_MS)),
        ("12:00:03.250", AppendTime(NOON_MS + 3250)),
        ("12:00", AppendTime(NOON_MS)),
        ("15m", AppendTime(NOON_MS)),
        ("900s", AppendTime(NOON_MS)),
    ],
)
def test_a_bound_is_an_offset_or_a_moment(text: str, bound: Bound) -> None:
    assert parse_bound(text, NOW) == bound


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2026-13-01", "25:00", "-5", "1e3", "12:00:99", "١٥", "١٥m", "offset:", "offset:x"]
)
def test_what_is_neither_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match="write an offset"):
        parse_bound(text, NOW)


@pytest.mark.parametrize("text", ["9" * 30 + "d", "1900-01-01", "0001-01-01T00:00+14:00", "9999-12-31T23:59-14:00"])
def test_a_time_that_no_record_can_have_is_called_that(text: str) -> None:
    with pytest.raises(ValueError, match="records have times of 1970 to 9999"):
        parse_bound(text, NOW)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1795708431", "in seconds: write 2026-11-26T15:53:51.000Z"),
        ("1795708431893", "in milliseconds: write 2026-11-26T15:53:51.893Z"),
        ("1795708431893000", "in microseconds: write 2026-11-26T15:53:51.893Z"),
        ("1795708431893000000", "in nanoseconds: write 2026-11-26T15:53:51.893Z"),
    ],
)
def test_a_unix_time_is_not_taken_for_an_offset(text: str, said: str) -> None:
    """Neither is a number so large that it can only have been meant as one, unless it is said to be an offset."""
    with pytest.raises(ValueError, match="looks like a Unix time") as refused:
        parse_bound(text, NOW)
    assert said in str(refused.value)
    assert parse_bound(f"offset:{text}", NOW) == Offset(int(text))


def test_no_offset_is_larger_than_a_brokers() -> None:
    with pytest.raises(ValueError, match="no offset is above"):
        parse_bound("9" * 19, NOW)


def test_a_moment_is_shown_as_it_is_read() -> None:
    assert parse_bound(show_ms(NOON_MS + 7), NOW) == AppendTime(NOON_MS + 7)


def test_every_field_of_every_event_is_a_column() -> None:
    assert {name for event in EVENTS for name in event.__struct_fields__} <= set(SCHEMA.names)
    assert set(EVENTS) == set(AnyEvent.__args__)


@given(st.lists(events, max_size=12))
def test_rows_are_the_events_in_their_order(found: list[AnyEvent]) -> None:
    records = [FakeRecord("orders", n, encode(event)) for n, event in enumerate(found)]
    table, aside = to_table(records)
    assert not aside
    for row, event in zip(table.to_pylist(), found, strict=True):
        told = msgspec.json.decode(encode(event))
        steps = told.pop("steps", None)
        assert {name: row[name] for name in told} == told
        assert (json.loads(row["steps"]) if row["steps"] else None) == steps
    assert table["offset"].to_pylist() == list(range(len(found)))


ODD = [b"", b"\xff\x00", b"{}", b'{"type":"order.placed"}', None, b"[" * 5000]


def test_what_is_no_event_is_kept_aside_as_it_was() -> None:
    history, _ = a_small_sale()
    odd = [FakeRecord("orders", 100 + n, value, key=None) for n, value in enumerate(ODD)]
    table, aside = to_table([odd[0], *history.records(), *odd[1:]])
    assert table.num_rows == len(history.events)
    lines = [json.loads(one.line()) for one in aside]
    assert [line["offset"] for line in lines] == [100 + n for n in range(len(ODD))]
    assert lines[1]["value_base64"] == "/wA="
    assert lines[3]["value"] == '{"type":"order.placed"}'
    assert lines[4]["value"] is None
    assert all(line["reason"] for line in lines)


def write(out: Path, records: Sequence[FakeRecord], *, by_date: bool = False, force: bool = False) -> list[Aside]:
    table, aside = to_table(records)
    with output(str(out), by_date=by_date, force=force) as opened:
        opened.write(table, aside)
    return aside


def test_each_format_tells_the_same(tmp_path: Path) -> None:
    records = a_small_sale()[0].records()
    for ending in ("parquet", "csv", "jsonl"):
        write(tmp_path / f"x.{ending}", records)
    in_parquet = pq.read_table(tmp_path / "x.parquet").to_pylist()
    with (tmp_path / "x.csv").open() as file:
        in_csv = list(csv.DictReader(file))
    in_jsonl = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert len(in_parquet) == len(in_csv) == len(in_jsonl) == len(records)
    for parquet, comma, line in zip(in_parquet, in_csv, in_jsonl, strict=True):
        plain = {name: value for name, value in parquet.items() if value is not None and name != "appended_at"}
        assert {name: line[name] for name in plain} == plain
        assert {name: comma[name] for name in plain} == {name: _in_csv(value) for name, value in plain.items()}
        assert datetime.fromisoformat(line["appended_at"]) == parquet["appended_at"]
        assert datetime.fromisoformat(comma["appended_at"]) == parquet["appended_at"]


def _in_csv(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_partitions_are_topics_and_dates(tmp_path: Path) -> None:
    records = a_small_sale()[0].records()
    late = [FakeRecord(r.topic, r.offset, r.value, timestamp=NOON_MS + 86_400_000) for r in records]
    write(tmp_path / "lake", [*records, *late], by_date=True)
    found = {str(path.relative_to(tmp_path / "lake").parent) for path in (tmp_path / "lake").rglob("*.parquet")}
    days = ("2026-11-22", "2026-11-23")
    assert found == {f"topic={topic}/date={day}" for topic in ("orders", "payments", "order-status") for day in days}


@pytest.mark.parametrize("by_date", [False, True])
def test_an_error_leaves_what_was_there(tmp_path: Path, by_date: bool) -> None:
    out = tmp_path / ("lake" if by_date else "x.parquet")
    records = a_small_sale()[0].records()
    write(out, records, by_date=by_date)
    size = size_of(out)
    with suppress(RuntimeError), output(str(out), by_date=by_date, force=True) as opened:
        opened.write(*to_table([*records, FakeRecord("orders", 9, b"odd")]))
        raise RuntimeError
    assert size_of(out) == size
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


@pytest.mark.parametrize("by_date", [False, True])
def test_force_replaces_a_replay_and_what_was_aside(tmp_path: Path, by_date: bool) -> None:
    out = tmp_path / ("lake" if by_date else "x.csv")
    records = a_small_sale()[0].records()
    write(out, [*records, FakeRecord("orders", 9, b"odd")], by_date=by_date)
    beside = out / "undecodable.jsonl" if by_date else tmp_path / "x.csv.undecodable.jsonl"
    assert len(beside.read_text().splitlines()) == 1
    with pytest.raises(ReplayError, match="--force replaces it"):
        write(out, records, by_date=by_date)
    write(out, records, by_date=by_date, force=True)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert not beside.exists()


@pytest.mark.parametrize("name", ["x.parquet", "x.csv", "x.jsonl", "lake"])
def test_a_place_that_may_not_be_written_is_said(name: str) -> None:
    """Nobody, root included, makes files there."""
    with pytest.raises(ReplayError, match=f"/sys/{name} could not be written, and nothing of it was left: "):
        write(Path("/sys") / name, [], by_date=name == "lake")


def test_force_deletes_nothing_but_a_replay(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("years of work")
    with pytest.raises(ReplayError, match="more than a replay"):
        write(home, [], by_date=True, force=True)
    with pytest.raises(ReplayError, match="ending"):
        write(home / "thesis.tex", [], force=True)
    with pytest.raises(ReplayError, match="no directory"):
        write(tmp_path / "nowhere" / "x.csv", [])
    assert (home / "thesis.tex").read_text() == "years of work"


class SilentConsumer:
    """A consumer whose broker hangs once it has been assigned to."""

    def assign(self, _: object) -> None: ...

    def seek(self, _: object, __: int) -> None: ...

    def pause(self, _: object) -> None: ...

    async def getmany(self, **_: object) -> dict[TopicPartition, list[object]]:
        await asyncio.sleep(0.01)
        return {}

    async def position(self, _: object) -> int:
        return 0


async def test_a_broker_that_falls_silent_in_the_middle_ends_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "STALLED_S", 0.05)
    reading = reader.TopicReader(SilentConsumer()).read(
        {TopicPartition("orders", 0): reader.OffsetRange(0, 9)}, reader.ReadProgress(9)
    )
    with pytest.raises(TimeoutError, match="Kafka has sent nothing"):
        await anext(reading)
