"""Turns raw records into one wide table, the same for every topic and in Parquet, CSV, JSON lines and SQL.

Its columns are the fields of schemas/events.py with the same names and units; a field that an event lacks is null. Records
that cannot be decoded become no rows: they are returned separately and unchanged.
"""

import base64
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import UNSET

from schemas.codec import VERSION_HEADER, Undecodable, decode
from schemas.events import (
    AnyEvent,
    OrderPlaced,
    OrderStatusChanged,
    PaymentRequested,
    SaleControlled,
    StockChanged,
    StockOpened,
)

from .reader import Record

EVENTS: tuple[type[AnyEvent], ...] = (
    OrderPlaced,
    StockOpened,
    PaymentRequested,
    OrderStatusChanged,
    StockChanged,
    SaleControlled,
)

ENVELOPE: list[tuple[str, pa.DataType]] = [
    ("topic", pa.string()),
    ("partition", pa.int32()),
    ("offset", pa.int64()),
    ("appended_at", pa.timestamp("ms", tz="UTC")),
    ("key", pa.string()),
    ("headers", pa.string()),  # JSON: name -> text
    ("type", pa.string()),
]
FIELDS: list[tuple[str, pa.DataType]] = [
    ("order_id", pa.string()),
    ("product_id", pa.int64()),
    ("user_id", pa.int64()),
    ("quantity", pa.int64()),
    ("unit_price_cents", pa.int64()),
    ("total_cents", pa.int64()),
    ("currency", pa.string()),
    ("status", pa.string()),
    ("reason", pa.string()),
    ("epoch", pa.int64()),
    ("version", pa.int64()),
    ("available", pa.int64()),
    ("returned", pa.int64()),
    ("initial", pa.int64()),
    ("held", pa.int64()),
    ("sold", pa.int64()),
    ("placed_at_ms", pa.int64()),
    ("requested_at_ms", pa.int64()),
    ("at_ms", pa.int64()),
    ("opened_at_ms", pa.int64()),
    ("found_epoch", pa.int64()),
    ("found_version", pa.int64()),
    ("announced_again", pa.int64()),
    ("log_lost", pa.bool_()),
    ("charge_started_at_ms", pa.int64()),
    ("charge_answered_at_ms", pa.int64()),
    ("steps", pa.string()),  # JSON: [{"status", "at_ms"}, ...]
    ("key_hash", pa.string()),
    ("redriven_from", pa.string()),
    ("action_id", pa.int64()),
    ("action", pa.string()),
    ("units", pa.int64()),
    ("who", pa.string()),
    ("why", pa.string()),
    ("findings", pa.string()),  # JSON: [text, ...]
    ("name", pa.string()),
]
SCHEMA = pa.schema(ENVELOPE + FIELDS)
_TYPES = dict(ENVELOPE + FIELDS)
_encode = msgspec.json.Encoder().encode
_ONLY_VERSION = _encode({VERSION_HEADER[0]: VERSION_HEADER[1].decode()}).decode()


@dataclass(frozen=True, slots=True)
class Aside:
    """A record that cannot be decoded as an event."""

    record: Record
    reason: str

    def line(self) -> bytes:
        """One JSON line; bytes that are not text are in base64, and the member name says so."""
        record = self.record
        return _encode(
            {
                "topic": record.topic,
                "partition": record.partition,
                "offset": record.offset,
                "appended_at_ms": record.timestamp,
                "reason": self.reason,
                "headers": {name: _text(value) for name, value in record.headers},
                **_bytes("key", record.key),
                **_bytes("value", record.value),
            }
        )


def to_table(records: Sequence[Record]) -> tuple[pa.Table, list[Aside]]:
    """The rows keep the order of the records."""
    aside: list[Aside] = []
    found: defaultdict[type[AnyEvent], list[tuple[int, Record, AnyEvent]]] = defaultdict(list)
    for n, record in enumerate(records):
        try:
            event = decode(record.value, record.headers)
        except Undecodable as error:
            aside.append(Aside(record, str(error)))
        else:
            found[type(event)].append((n, record, event))
    parts = [_columns(kind, rows) for kind, rows in found.items()]
    if len(parts) < 2:
        return (parts[0] if parts else SCHEMA.empty_table()), aside
    order = pa.array([n for rows in found.values() for n, _, _ in rows])
    ranks = pc.sort_indices(order)
    return pa.concat_tables(parts).take(ranks), aside


def _columns(kind: type[AnyEvent], rows: Sequence[tuple[int, Record, AnyEvent]]) -> pa.Table:
    """Builds one column at a time: row by row is ten times slower."""
    records = [record for _, record, _ in rows]
    columns: dict[str, pa.Array] = {
        "topic": pa.array([record.topic for record in records], pa.string()),
        "partition": pa.array([record.partition for record in records], pa.int32()),
        "offset": pa.array([record.offset for record in records], pa.int64()),
        "appended_at": pa.array([record.timestamp for record in records], pa.int64()).cast(_TYPES["appended_at"]),
        "key": pa.array([_text(record.key) for record in records], pa.string()),
        "headers": pa.array([_headers(record) for record in records], pa.string()),
        "type": pa.repeat(kind.__struct_config__.tag, len(records)),
    }
    names = kind.__struct_fields__
    values = zip(*[msgspec.structs.astuple(event) for _, _, event in rows], strict=True)
    for name, column in zip(names, values, strict=True):
        columns[name] = pa.array(_plain(kind, name, column), _TYPES[name])
    return pa.table([columns.get(name, pa.nulls(len(records), _TYPES[name])) for name in SCHEMA.names], schema=SCHEMA)


def _plain(kind: type[AnyEvent], name: str, column: Sequence[Any]) -> Sequence[Any]:
    if name in ("steps", "findings"):
        return [_listed(value) for value in column]
    if kind.__struct_defaults__ and name in kind.__struct_fields__[-len(kind.__struct_defaults__) :]:
        return [None if value is UNSET else value for value in column]
    return column  # always present


def _listed(value: Any) -> str | None:
    return _encode(value).decode() if value else None


def _headers(record: Record) -> str | None:
    headers = record.headers
    if len(headers) == 1 and headers[0] == VERSION_HEADER:
        return _ONLY_VERSION
    return _encode({name: _text(value) for name, value in headers}).decode() if headers else None


def _text(raw: bytes | None) -> str | None:
    return None if raw is None else raw.decode(errors="backslashreplace")


def _bytes(name: str, raw: bytes | None) -> dict[str, str | None]:
    try:
        return {name: None if raw is None else raw.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(raw or b"").decode()}
