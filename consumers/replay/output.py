"""Writes tables to a file or directory. It writes a draft beside it and renames it at the end: a complete output or none."""

import os
import shutil
import sys
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from .reader import InvalidRequest, ReplayError
from .table import SCHEMA, Aside

STDOUT = "-"
ASIDE_SUFFIX = ".undecodable.jsonl"
ASIDE_NAME = "undecodable.jsonl"


class OutputClosed(Exception):
    """The reader of standard output has closed it (`| head`)."""


class Format(StrEnum):
    """The format of rows; a file's extension selects it."""

    PARQUET = "parquet"
    CSV = "csv"
    JSONL = "jsonl"


class Rows(Protocol):
    """A writer of one format."""

    @abstractmethod
    def write(self, table: pa.Table) -> None: ...

    @abstractmethod
    def close(self) -> None: ...


class _Parquet:
    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(path, SCHEMA, compression="zstd", compression_level=1)

    def write(self, table: pa.Table) -> None:
        self._writer.write_table(table)

    def close(self) -> None:
        self._writer.close()


class _Csv:
    def __init__(self, path: Path) -> None:
        self._writer = pyarrow.csv.CSVWriter(path, SCHEMA)

    def write(self, table: pa.Table) -> None:
        self._writer.write_table(table)

    def close(self) -> None:
        self._writer.close()


class _Jsonl:
    """JSON lines without nulls."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._encoder = msgspec.json.Encoder()

    def write(self, table: pa.Table) -> None:
        rows = ({k: v for k, v in row.items() if v is not None} for row in table.to_pylist())
        self._file.write(self._encoder.encode_lines(rows))

    def close(self) -> None:
        self._file.flush()
        if self._file is not sys.stdout.buffer:
            self._file.close()


class Output:
    """The target of a replay; `draft` is None for standard output, the only target that can end half-written."""

    def __init__(self, name: str, draft: Path | None, kind: Format, by_date: bool) -> None:
        self._name = name
        self._draft = draft
        self._kind = kind
        self._by_date = by_date
        self._open: dict[str, Rows] = {}
        self._aside: BinaryIO | None = None
        if by_date:
            assert draft is not None
            draft.mkdir()
        else:
            self._rows("")  # a replay without records still makes a file

    def write(self, table: pa.Table, aside: Sequence[Aside]) -> None:
        """Raises ReplayError if the disk is full, OutputClosed if the reader has closed standard output."""
        with writing(self._name):
            if table.num_rows:
                self._write(table)
            if aside:
                self._put_aside(aside)

    def close(self) -> None:
        with writing(self._name):
            for rows in self._open.values():
                rows.close()
            if self._aside is not None and self._draft is not None:
                self._aside.close()

    def _write(self, table: pa.Table) -> None:
        if not self._by_date:
            self._rows("").write(table)
            return
        folders = pc.binary_join_element_wise(
            "topic=", table["topic"], "/date=", pc.strftime(table["appended_at"], "%Y-%m-%d"), ""
        )
        for folder in pc.unique(folders).to_pylist():
            self._rows(folder).write(table.filter(pc.equal(folders, folder)))

    def _put_aside(self, records: Sequence[Aside]) -> None:
        if self._aside is None:
            self._aside = sys.stderr.buffer if self._draft is None else aside_of(self._draft, self._by_date).open("wb")
        self._aside.writelines(record.line() + b"\n" for record in records)

    def _rows(self, folder: str) -> Rows:
        if folder not in self._open:
            self._open[folder] = self._start(folder)
        return self._open[folder]

    def _start(self, folder: str) -> Rows:
        if self._draft is None:
            return _Jsonl(sys.stdout.buffer)
        path = self._draft
        if self._by_date:
            (path / folder).mkdir(parents=True)
            path = path / folder / f"events.{self._kind}"
        match self._kind:
            case Format.PARQUET:
                return _Parquet(path)
            case Format.CSV:
                return _Csv(path)
            case Format.JSONL:
                return _Jsonl(path.open("wb"))


def aside_of(path: Path, by_date: bool) -> Path:
    """The file for records that are no events, beside the rows."""
    return path / ASIDE_NAME if by_date else path.with_name(path.name + ASIDE_SUFFIX)


def format_of(out: str, by_date: bool) -> Format:
    """Raises InvalidRequest if the extension names no format."""
    if out == STDOUT:
        if by_date:
            raise InvalidRequest("--partition-by writes a directory: give --out a name")
        return Format.JSONL
    ending = Path(out).suffix.removeprefix(".")
    if not ending and by_date:
        return Format.PARQUET
    try:
        return Format(ending)
    except ValueError:
        endings = ", ".join(f".{kind}" for kind in Format)
        raise InvalidRequest(f"--out {out}: its ending must be one of {endings}, or - for standard output") from None


@contextmanager
def output(out: str, *, by_date: bool, force: bool) -> Iterator[Output]:
    """If the body succeeds, `out` has its rows; if it fails, `out` is as it was before.

    Raises ReplayError: at once if `out` cannot be written, later if the disk is full.
    """
    kind = format_of(out, by_date)
    if out == STDOUT:
        opened = Output(out, None, kind, by_date)
        yield opened
        opened.close()
        return
    path = Path(out)
    _check_place(path, by_date, force)
    draft = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with writing(out):
            opened = Output(out, draft, kind, by_date)
        try:
            yield opened
        finally:
            opened.close()
        with writing(out):
            _move(draft, path, by_date)
    finally:
        _remove(draft)
        _remove(aside_of(draft, by_date=False))


@contextmanager
def writing(out: str) -> Iterator[None]:
    """Turns errors of the disk into ReplayError, so that they differ from errors of the broker."""
    try:
        yield
    except BrokenPipeError:
        raise OutputClosed from None
    except OSError as error:
        left = "" if out == STDOUT else ", and nothing of it was left"
        why = os.strerror(error.errno) if error.errno else str(error)
        raise ReplayError(f"{out} could not be written{left}: {why}") from error


def _check_place(path: Path, by_date: bool, force: bool) -> None:
    if not path.absolute().parent.is_dir():
        raise ReplayError(f"there is no directory {path.parent}")
    if not os.path.lexists(path):
        return
    if not force:
        raise ReplayError(f"{path} exists; --force replaces it")
    if path.is_dir() != by_date:
        raise ReplayError(f"{path} is {'a directory' if path.is_dir() else 'a file'}: --force does not replace that")
    if by_date and any(not found.name.startswith("topic=") and found.name != ASIDE_NAME for found in path.iterdir()):
        raise ReplayError(f"{path} holds more than a replay: --force does not delete that")


def _move(draft: Path, path: Path, by_date: bool) -> None:
    if by_date:
        old = draft.with_name(draft.name + ".old")
        if path.exists():
            path.rename(old)
        draft.rename(path)
        _remove(old)
        return
    aside = aside_of(draft, by_date)
    if aside.exists():
        aside.replace(aside_of(path, by_date))
    else:
        aside_of(path, by_date).unlink(missing_ok=True)  # from an earlier replay
    draft.replace(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files under a directory."""
    files: list[Any] = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)
