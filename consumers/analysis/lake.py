"""Opens replayed files in an in-memory DuckDB database with the views of views.sql, replaying the topics first if needed."""

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from consumers.replay.output import ASIDE_NAME, ASIDE_SUFFIX, Format
from consumers.replay.reader import ReplayError
from consumers.replay.replay import Request, Say, replay
from consumers.replay.table import SCHEMA
from consumers.replay.when import Bound
from infra.settings import Settings
from schemas.order_state import RANK, TERMINAL
from schemas.topics import ORDER_STATUS, ORDERS, PAYMENTS, STOCK_CHANGES

LOAD_CLIENT_LOG = """
INSERT INTO answers SELECT moment(at_ms), outcome, product
FROM read_json(?, format = 'newline_delimited', columns = {at_ms: 'BIGINT', outcome: 'VARCHAR', product: 'INTEGER'})
"""
VIEWS = Path(__file__).with_name("views.sql")
EVENT_TOPICS = tuple(topic.name for topic in (ORDERS, PAYMENTS, ORDER_STATUS, STOCK_CHANGES))
# Files of earlier releases lack these columns; the views read them as null.
ADDED_LATER = {"name", "found_epoch", "found_version", "announced_again", "log_lost", "findings"}
FileShape = tuple[Format, tuple[str, ...]]  # format and columns
_SQL_TYPES = {
    pa.string(): "VARCHAR",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.bool_(): "BOOLEAN",
    SCHEMA.field("appended_at").type: "TIMESTAMPTZ",
}


def open_lake(paths: Sequence[Path]) -> duckdb.DuckDBPyConnection:
    """Opens files that `thrones replay` wrote, or directories of them. Raises ReplayError for other files."""
    # No query may make DuckDB fetch an extension from the network.
    options: dict[str, str | bool | int | float | list[str]] = {
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
    }
    lake = duckdb.connect(config=options)
    lake.execute("SET TimeZone = 'UTC'")
    selects = [_select(kind, columns, files) for (kind, columns), files in _by_shape(paths).items()]
    try:
        lake.execute(f"CREATE VIEW events AS {' UNION ALL '.join(selects)}")
        ranks = ", ".join(f"('{status}', {rank}, {status in TERMINAL})" for status, rank in RANK.items())
        lake.execute(f"CREATE TABLE status_ranks AS FROM (VALUES {ranks}) AS ranks (status, rank, terminal)")
        lake.execute(VIEWS.read_text())
    except duckdb.Error as error:
        raise ReplayError(f"these are not files of `thrones replay`: {error}") from error
    return lake


def load_client_log(lake: duckdb.DuckDBPyConnection, client_log: Path) -> None:
    """Loads a client log, as `bench.buyers --log` writes it, into the table `answers`. Raises ReplayError."""
    try:
        lake.execute(LOAD_CLIENT_LOG, [str(client_log)])
    except duckdb.Error as error:
        raise ReplayError(f"{client_log} is no client log: {error}") from error


@contextmanager
def temporary_events() -> Iterator[Path]:
    """A temporary file for a replay that serves one command."""
    with TemporaryDirectory(prefix="thrones-sql-") as folder:
        yield Path(folder) / "events.parquet"


async def replay_into(
    settings: Settings, path: Path, start: Bound | None = None, end: Bound | None = None, say: Say | None = None
) -> None:
    """Replays all topics of events, as they are now, into one file."""
    await replay(settings, Request(EVENT_TOPICS, str(path), start, end), say)


def _by_shape(paths: Sequence[Path]) -> dict[FileShape, list[Path]]:
    """Groups files by format and columns: each group is read by one statement."""
    found: dict[FileShape, list[Path]] = {}
    for path in paths:
        if not path.exists():
            raise ReplayError(
                f"there is no {path}; `thrones replay orders order-status payments --out {path}` makes it"
            )
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        for file in files:
            if file.name != ASIDE_NAME and not file.name.endswith(ASIDE_SUFFIX):
                found.setdefault(_shape(file), []).append(file)
    if not found:
        raise ReplayError(f"no replayed files in {', '.join(map(str, paths))}")
    return found


def _shape(file: Path) -> FileShape:
    try:
        kind = Format(file.suffix.removeprefix("."))
    except ValueError:
        raise ReplayError(f"{file} is no file of `thrones replay`") from None
    columns = _columns(kind, file)
    if set(SCHEMA.names) - set(columns) - ADDED_LATER:
        raise ReplayError(f"these are not files of `thrones replay`: {file} has other columns")
    return kind, tuple(name for name in SCHEMA.names if name in columns)


def _columns(kind: Format, file: Path) -> Sequence[str]:
    """The columns in the file. JSON lines leave out nulls, so a JSON file may have any column."""
    match kind:
        case Format.PARQUET:
            try:
                return list(pq.read_schema(file).names)
            except pa.ArrowInvalid as error:
                raise ReplayError(f"these are not files of `thrones replay`: {error}") from None
        case Format.CSV:
            with file.open(newline="") as lines:
                return next(csv.reader(lines), [])
        case Format.JSONL:
            return list(SCHEMA.names)


def _select(kind: Format, present: Sequence[str], files: Sequence[Path]) -> str:
    absent = {field.name: f"CAST(NULL AS {_SQL_TYPES[field.type]})" for field in SCHEMA if field.name not in present}
    names = ", ".join(f'{absent[name]} AS "{name}"' if name in absent else f'"{name}"' for name in SCHEMA.names)
    listed = "[" + ", ".join("'" + str(file).replace("'", "''") + "'" for file in files) + "]"
    types = ", ".join(f"'{name}': '{_SQL_TYPES[SCHEMA.field(name).type]}'" for name in present)
    columns = "{" + types + "}"
    match kind:
        case Format.PARQUET:
            source = f"read_parquet({listed}, hive_partitioning = false)"
        case Format.CSV:
            source = f"read_csv({listed}, header = true, columns = {columns}, hive_partitioning = false)"
        case Format.JSONL:
            source = (
                f"read_json({listed}, format = 'newline_delimited', columns = {columns}, hive_partitioning = false)"
            )
    return f"SELECT {names} FROM {source}"  # noqa: S608 - our own column names, and quoted paths
