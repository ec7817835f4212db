"""Follows log files: the last lines of each, then new lines, across rotation."""

import time
from collections.abc import Iterator
from pathlib import Path

from infra.supervision.process import tail

POLL_INTERVAL_S = 0.2


def log_files(state_dir: Path, role: str | None) -> list[Path]:
    """The logs of a role (all members; `kafka` or `kafka-2`), or of every process."""
    logs = sorted((state_dir / "logs").glob("*.log"))
    return [log for log in logs if role is None or log.stem == role or log.stem.rpartition("-")[0] == role]


def last_lines(logs: list[Path], lines: int) -> Iterator[str]:
    for log in logs:
        for line in tail(log, lines).splitlines():
            yield _labelled(log, line, logs)


def follow(logs: list[Path]) -> Iterator[str]:
    """All lines appended from now on, for ever. A file that became shorter was rotated and is read from its start."""
    offsets = {log: log.stat().st_size for log in logs}
    while True:
        for log in logs:
            size = log.stat().st_size if log.exists() else 0
            if size < offsets[log]:
                offsets[log] = 0
            if size > offsets[log]:
                with log.open("rb") as file:
                    file.seek(offsets[log])
                    block = file.read()
                whole = block[: block.rfind(b"\n") + 1]  # the next read brings the rest of the line
                offsets[log] += len(whole)
                for line in whole.decode(errors="replace").splitlines():
                    yield _labelled(log, line, logs)
        time.sleep(POLL_INTERVAL_S)


def _labelled(log: Path, line: str, logs: list[Path]) -> str:
    return f"{log.stem:<18} {line}" if len(logs) > 1 else line
