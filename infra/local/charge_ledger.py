"""The ledger of the mock payment gateway: JSON lines on disk, one line per decision, each written once.

A line is one unbuffered write without fsync: it survives kill -9 of the process, but not a power loss.
"""

import fcntl
import os
from pathlib import Path

import msgspec

CAPTURE = "capture"
DECLINE = "decline"


class LedgerFull(Exception):
    """The line could not be written completely; nothing was decided."""


class LedgerEntry(msgspec.Struct, frozen=True, rename="camel"):
    """One decision as stored on disk; `charge_id` is None for a decline."""

    kind: str
    key: str
    order_id: str
    charge_id: str | None
    amount: str
    currency: str
    at_ms: int


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(LedgerEntry)
_CAPTURE_PREFIX = b'{"kind":"' + CAPTURE.encode() + b'"'


class ChargeLedger:
    """The append-only file, indexed by idempotency key and by order. Only one process at a time may use the file."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.by_key: dict[str, LedgerEntry] = {}
        self.captures = 0
        self.declines = 0
        self._by_order: dict[str, list[LedgerEntry]] = {}
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._size = self._load()

    def record(self, entry: LedgerEntry) -> None:
        """Write one decision to disk, then to the index. After LedgerFull it is in neither."""
        line = _encoder.encode(entry) + b"\n"
        try:
            written = os.write(self._file, line)
        except OSError as error:
            raise LedgerFull(str(error)) from error
        if written != len(line):
            os.ftruncate(self._file, self._size)
            raise LedgerFull(f"{written} of {len(line)} bytes written")
        self._size += written
        self._index(entry)

    def of_order(self, order_id: str) -> list[LedgerEntry]:
        return self._by_order.get(order_id, [])

    def captures_json(self) -> bytes:
        """All capture lines on disk as one JSON array. It reads the file, so call it in a thread."""
        lines = self.path.read_bytes().split(b"\n")[:-1]
        return b"[" + b",".join(line for line in lines if line.startswith(_CAPTURE_PREFIX)) + b"]"

    def close(self) -> None:
        os.close(self._file)

    def _load(self) -> int:
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1  # a kill can tear only the last line, and its charge was never answered
        if whole != len(content):
            os.ftruncate(self._file, whole)
        for line in content[:whole].splitlines():
            self._index(_decoder.decode(line))
        return whole

    def _index(self, entry: LedgerEntry) -> None:
        self.by_key.setdefault(entry.key, entry)
        self._by_order.setdefault(entry.order_id, []).append(entry)
        if entry.kind == CAPTURE:
            self.captures += 1
        else:
            self.declines += 1
