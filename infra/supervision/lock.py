"""The lock of a state directory. Its supervisor holds it as long as it lives, even if its files or the clock change."""

import contextlib
import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path

KERNEL_LOCKS = Path("/proc/locks")
KIND, PID, FILE = 1, 4, 5  # fields of a line: "1: FLOCK  ADVISORY  WRITE 4711 fe:01:2097153 0 EOF"


@contextlib.contextmanager
def supervisor_lock(state_dir: Path) -> Iterator[None]:
    """Hold the lock. A second supervisor of the same state exits here."""
    with _file(state_dir).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"another supervisor runs in {state_dir}")
        yield


def lock_holder(state_dir: Path) -> int | None:
    """The pid that holds the lock, as the kernel lists it. Trying the lock instead could stop a supervisor that starts."""
    try:
        file, table = _file(state_dir).stat(), KERNEL_LOCKS.read_text()
    except OSError:
        return None  # no such state, or a kernel without this list
    device = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}"
    held = (fields for fields in map(str.split, table.splitlines()) if fields[KIND] == "FLOCK")
    return next((int(fields[PID]) for fields in held if fields[FILE] == f"{device}:{file.st_ino}"), None)


def _file(state_dir: Path) -> Path:
    return state_dir / "supervisor.lock"
