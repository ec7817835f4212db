"""The schema files are those of the code, say the same as its decoder, and what was ever written stays readable."""

from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import topics
from schemas.codec import READABLE_VERSIONS, VERSION_HEADER, Undecodable, decode, encode
from schemas.events import AnyEvent, Event
from schemas.generate import EVENTS, FOLDER, name_of, path_of, schema_of, text_of
from tests.events import events

SAMPLES = (Path(__file__).parent / "samples" / "events-v1.jsonl").read_bytes().splitlines()
VALIDATORS = {name_of(event): jsonschema.Draft202012Validator(schema_of(event)) for event in EVENTS}


@pytest.mark.parametrize("event", EVENTS, ids=name_of)
def test_each_schema_file_is_current(event: type[Event]) -> None:
    """Otherwise run `python -m schemas.generate`, and read schemas/README.md on what may change."""
    assert path_of(event).read_bytes() == text_of(event)
    jsonschema.Draft202012Validator.check_schema(schema_of(event))


def test_there_is_no_schema_of_an_event_that_is_gone() -> None:
    assert {path.name for path in FOLDER.glob("*.schema.json")} == {path_of(event).name for event in EVENTS}


@given(events)
def test_every_event_validates_against_its_schema(event: AnyEvent) -> None:
    """A reader outside, who has only the files, accepts all that we write."""
    value: dict[str, Any] = msgspec.json.decode(encode(event))
    VALIDATORS[value["type"]].validate(value)


@given(events, st.data())
def test_schema_and_decoder_refuse_the_same(event: AnyEvent, data: st.DataObject) -> None:
    """A changed or missing field is refused by both or by neither, so the files promise what the code keeps."""
    value: dict[str, Any] = msgspec.json.decode(encode(event))
    name = data.draw(st.sampled_from(sorted(set(value) - {"type"})))
    if data.draw(st.booleans()):
        del value[name]
    else:
        value[name] = data.draw(st.sampled_from([-1, 0, 1, 2**31, 2**63, "", "x", "USD", "confirmed", True, None, []]))
    try:
        decode(msgspec.json.encode(value))
        readable = True
    except Undecodable:
        readable = False
    assert VALIDATORS[value["type"]].is_valid(value) == readable


@pytest.mark.parametrize("line", SAMPLES, ids=range(len(SAMPLES)))
def test_what_was_written_by_version_1_stays_readable(line: bytes) -> None:
    """The log is kept for ever: every sample decodes, and says the same when it is written again."""
    event = decode(line, (("schema-version", b"1"),))
    assert msgspec.json.decode(encode(event)) == msgspec.json.decode(line)
    value = msgspec.json.decode(line)
    VALIDATORS[value["type"]].validate(value)


def test_there_is_a_sample_of_every_event() -> None:
    assert {msgspec.json.decode(line)["type"] for line in SAMPLES} == {name_of(event) for event in EVENTS}


def test_what_we_write_we_can_read() -> None:
    """Readers are released before writers."""
    assert VERSION_HEADER[1] in READABLE_VERSIONS
    assert b"1" in READABLE_VERSIONS


def test_topics_are_named_once_and_each_group_reads_one() -> None:
    names = [topic.name for topic in topics.ALL]
    assert len(set(names)) == len(names)
    assert set(topics.CONSUMED_BY.values()) <= set(topics.ALL)
    longest = topics.FOR_EVER
    assert {topics.ORDERS.retention_ms, topics.ORDER_STATUS.retention_ms} == {longest}
