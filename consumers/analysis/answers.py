"""Runs SQL statements and renders their rows: a table for people, JSON or CSV for machines."""

import csv
import io
from collections.abc import Iterator, Sequence
from datetime import date, datetime
from typing import Any

import duckdb
import msgspec

ROWS_SHOWN = 200
WIDEST = 60  # characters of one cell


class QueryError(Exception):
    """DuckDB rejected the statement; the text is DuckDB's."""


class QueryResult(msgspec.Struct, frozen=True):
    """All rows of one statement."""

    columns: list[str]
    rows: list[tuple[Any, ...]]


def ask(lake: duckdb.DuckDBPyConnection, text: str) -> Iterator[QueryResult]:
    """Yields one result per statement. Raises QueryError."""
    try:
        for statement in lake.extract_statements(text):
            asked = lake.execute(statement)
            columns = [column[0] for column in asked.description or ()]
            yield QueryResult(columns, asked.fetchall() if columns else [])
    except duckdb.Error as error:
        raise QueryError(str(error)) from None


def as_table(answer: QueryResult) -> str:
    shown = [[_cell(value)[:WIDEST] for value in row] for row in answer.rows[:ROWS_SHOWN]]
    widths = [max(map(len, column)) for column in zip(answer.columns, *shown, strict=True)]
    right = [
        all(isinstance(value, int | float) and not isinstance(value, bool) for value in column if value is not None)
        for column in (zip(*answer.rows[:ROWS_SHOWN], strict=True) if shown else [()] * len(widths))
    ]
    lines = [_line(answer.columns, widths, right), "  ".join("-" * width for width in widths)]
    lines += [_line(row, widths, right) for row in shown]
    more = len(answer.rows) - len(shown)
    count = f"({len(answer.rows)} row{'' if len(answer.rows) == 1 else 's'}"
    lines.append(f"{count}; {more} not shown: --csv and --json give all)" if more else f"{count})")
    return "\n".join(lines)


def as_json(answer: QueryResult) -> str:
    return msgspec.json.encode([dict(zip(answer.columns, row, strict=True)) for row in answer.rows]).decode()


def as_csv(answer: QueryResult) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(answer.columns)
    writer.writerows([["" if value is None else _cell(value) for value in row] for row in answer.rows])
    return text.getvalue().removesuffix("\n")


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    padded = (
        cell.rjust(width) if to_right else cell.ljust(width)
        for cell, width, to_right in zip(cells, widths, right, strict=True)
    )
    return "  ".join(padded).rstrip()


def _cell(value: Any) -> str:
    match value:
        case None:
            return "-"
        case datetime():
            return value.isoformat(sep=" ", timespec="milliseconds").removesuffix("+00:00")
        case date():
            return value.isoformat()
        case float():
            return f"{value:.6g}"
        case _:
            return str(value)
