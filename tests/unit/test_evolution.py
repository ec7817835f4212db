"""Two releases on one log: what yesterday wrote is read today, and what today writes is read by yesterday's reader.

The log is kept for ever and members of two releases run side by side, so both directions are checked, for all values and not
only for samples. What may change and how: schemas/README.md.
"""

from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.inspect import (
    BoolType,
    EnumType,
    Field,
    IntType,
    StrType,
    StructType,
    Type,
    VarTupleType,
    type_info,
)

from schemas import topics
from schemas.codec import READABLE_VERSIONS, decode, encode
from schemas.generate import EVENTS, name_of

from . import reader_v1

Json = dict[str, Any]
OLD_EVENTS: tuple[type[msgspec.Struct], ...] = get_args(reader_v1.AnyEvent)
OLD_NAMES = {str(event.__struct_config__.tag) for event in OLD_EVENTS}
ADDED_LATER = st.dictionaries(st.just("added_later"), st.none() | st.integers() | st.lists(st.text(max_size=5)))


def values_of(kind: Type) -> st.SearchStrategy[Any]:
    """JSON values that a reader of this type takes; the whole range of each."""
    match kind:
        case IntType(ge=low, le=high):
            return st.integers(low, high) | st.sampled_from([low, high])
        case StrType(pattern=str(pattern)):
            return st.from_regex(pattern.removesuffix("$") + r"\Z")
        case BoolType():
            return st.booleans()
        case StrType():
            return st.text(max_size=40)
        case EnumType(cls=names):
            return st.sampled_from([name.value for name in names])
        case VarTupleType(item_type=item):
            return st.lists(values_of(item), max_size=4)
        case StructType(fields=fields, tag=tag):
            return objects(fields, {} if tag is None else {"type": tag})
        case _:
            raise AssertionError(f"no values of {kind}")


def objects(fields: tuple[Field, ...], constant: Json) -> st.SearchStrategy[Json]:
    must = {field.encode_name: values_of(field.type) for field in fields if field.required}
    may = {field.encode_name: values_of(field.type) for field in fields if not field.required}
    return st.fixed_dictionaries(must, optional=may).map(lambda value: constant | value)


def without_nothing(value: Json) -> Json:
    """An empty list may be left out."""
    return {name: one for name, one in value.items() if one != []}


@pytest.mark.parametrize("old", OLD_EVENTS, ids=lambda event: event.__struct_config__.tag)
@settings(max_examples=50)
@given(data=st.data())
def test_what_version_1_could_write_is_read_today_to_the_last_field(old: type, data: st.DataObject) -> None:
    """No field has gone, none has become needed, no bound has narrowed, no word of a list has been taken away."""
    value: Json = data.draw(values_of(type_info(old)))
    written: Json = msgspec.json.decode(encode(decode(msgspec.json.encode(value))))
    assert without_nothing(written) == without_nothing(value)


@pytest.mark.parametrize("event", [event for event in EVENTS if name_of(event) in OLD_NAMES], ids=name_of)
@settings(max_examples=50)
@given(data=st.data())
def test_what_can_be_written_today_is_read_by_version_1(event: type, data: st.DataObject) -> None:
    """With fields that it does not know, today's or tomorrow's: it passes over them, and reads its own as they were meant."""
    value: Json = data.draw(values_of(type_info(event)))
    old = reader_v1.decode(msgspec.json.encode(value | data.draw(ADDED_LATER)))
    told: Json = msgspec.json.decode(reader_v1.encode(old))
    assert without_nothing(told) == {
        name: given for name, given in without_nothing(value).items() if name in ("type", *type(old).__struct_fields__)
    }


def test_an_event_that_version_1_does_not_know_is_on_a_topic_that_it_does_not_read() -> None:
    """Else its readers would dead-letter it."""
    document: Json = yaml.safe_load((Path(topics.__file__).parent / "asyncapi.yaml").read_text("utf-8"))
    names = {key: message["name"] for key, message in document["components"]["messages"].items()}
    for channel in document["channels"].values():
        carried = {names[key] for key in channel["messages"]} - {"dead-letter"}
        assert carried <= OLD_NAMES or not carried & OLD_NAMES, channel["address"]


def test_version_1_is_still_read() -> None:
    assert b"1" in READABLE_VERSIONS
    assert {name_of(event) for event in EVENTS} >= OLD_NAMES
