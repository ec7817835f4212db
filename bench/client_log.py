"""The client log: one JSON line per answer, as `thrones audit --client-log` reads it."""

import os

import msgspec
from msgspec import UNSET, UnsetType

FLUSH_LINES = 200


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to one request, or that none came. `outcome`: A = 202, U = unknown, R = definitely refused."""

    at_ms: int  # when the answer came
    user: int
    product: int
    key: str | None
    order: str | None
    outcome: str
    status: int
    code: str
    latency_ms: float
    quantity: int | UnsetType = UNSET
    retry_after: str | UnsetType | None = UNSET


class ClientLog:
    """Each write appends whole lines, so that several processes can share the file. Without a path it writes nothing."""

    def __init__(self, path: str | None) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if path else None
        self._lines: list[bytes] = []
        self._encode = msgspec.json.Encoder().encode

    def add(self, line: Answered) -> None:
        if self._file is not None:
            self._lines.append(self._encode(line) + b"\n")
            if len(self._lines) >= FLUSH_LINES:
                self.flush()

    def flush(self) -> None:
        data, self._lines = b"".join(self._lines), []
        while data and self._file is not None:
            data = data[os.write(self._file, data) :]

    def close(self) -> None:
        self.flush()
        if self._file is not None:
            os.close(self._file)
            self._file = None
