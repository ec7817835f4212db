"""The state directory's lock: its supervisor holds it as long as it lives, whatever becomes of its files or of the clock."""

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
    """Hold the lock; a second supervisor of the same state ends here."""
    with _file(state_dir).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"another supervisor runs in {state_dir}")
        yield


def lock_holder(state_dir: Path) -> int | None:
    """Whose it is, as the kernel says. Trying the lock would tell too, but might keep a supervisor that starts from it."""
    try:
        file, table = _file(state_dir).stat(), KERNEL_LOCKS.read_text()
    except OSError:
        return None  # no such state, or a kernel that does not tell
    device = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}"
    held = (fields for fields in map(str.split, table.splitlines()) if fields[KIND] == "FLOCK")
    return next((int(fields[PID]) for fields in held if fields[FILE] == f"{device}:{file.st_ino}"), None)


def _file(state_dir: Path) -> Path:
    return state_dir / "supervisor.lock"
