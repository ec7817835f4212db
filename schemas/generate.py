"""Writes the JSON Schemas of the event types beside this file: `python -m schemas.generate`. A test fails when one is stale."""

from inspect import cleandoc
from pathlib import Path
from typing import Any, get_args

import msgspec

from .codec import VERSION_HEADER
from .events import AnyEvent, Event

FOLDER = Path(__file__).parent
DIALECT = "https://json-schema.org/draft/2020-12/schema"
EVENTS: tuple[type[Event], ...] = get_args(AnyEvent)


def name_of(event: type[Event]) -> str:
    """The value of its `type` field, like order.placed."""
    tag = event.__struct_config__.tag
    assert isinstance(tag, str)
    return tag


def path_of(event: type[Event]) -> Path:
    return FOLDER / f"{name_of(event)}.schema.json"


def schema_of(event: type[Event]) -> dict[str, Any]:
    """The JSON Schema of an event's value. Unknown fields are allowed, because readers ignore them."""
    (_,), components = msgspec.json.schema_components([event], ref_template="#/$defs/{name}")
    for component in components.values():
        component["description"] = cleandoc(component["description"])
    own: dict[str, Any] = components.pop(event.__name__)
    head: dict[str, Any] = {
        "$schema": DIALECT,
        "$id": path_of(event).name,
        "x-schema-version": VERSION_HEADER[1].decode(),
    }
    return head | own | ({"$defs": components} if components else {})


def text_of(event: type[Event]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(schema_of(event)), indent=2) + b"\n"


def main() -> None:
    for event in EVENTS:
        path_of(event).write_bytes(text_of(event))


if __name__ == "__main__":
    main()
