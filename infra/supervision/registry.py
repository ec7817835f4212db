"""Process rows in the state directory: a long-running process writes its own at start, readers get the live ones.

A process is known by its pid, the kernel's ticks since boot at which it started, and the boot: a clock that is set moves
none of them. Its start in seconds since the epoch would move with every step of the clock.
"""

import json
import os
from functools import cache
from pathlib import Path
from typing import TypedDict

PROC = Path("/proc")
STATE, START_TICKS = 0, 19  # in /proc/PID/stat, counted from the field after the name
ENDED = frozenset("ZXx")  # zombies, and what is being removed


class ProcessRow(TypedDict):
    role: str
    member: str
    pid: int
    port: int | None


def run_dir(state_dir: Path | None = None) -> Path:
    if state_dir is None:
        from infra.settings import get_settings  # the command line starts without it

        state_dir = get_settings().thrones_state_dir
    return state_dir / "run"


def register(
    role: str,
    member: str = "1",
    port: int | None = None,
    *,
    pid: int | None = None,
    state_dir: Path | None = None,
) -> Path:
    """Write this process' row (port: its metrics or HTTP port); a second call replaces it. Returns the row's file.

    Where another live process has the name, one that was started by hand beside it, its pid is the member's name.
    """
    pid = pid or os.getpid()
    folder = run_dir(state_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if _taken(folder / f"{role}-{member}.json", pid):
        member = str(pid)
    path = folder / f"{role}-{member}.json"
    row = {
        "role": role,
        "member": member,
        "pid": pid,
        "port": port,
        "started": started(pid),
    }
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(row))
    draft.replace(path)  # a reader sees the old row or the new one, never half of one
    return path


def _taken(path: Path, pid: int) -> bool:
    try:
        raw = json.loads(path.read_text())
        return bool(raw["pid"] != pid and alive(raw["pid"], raw["started"]))
    except (OSError, ValueError, KeyError):
        return False


def live_rows(state_dir: Path | None = None) -> list[ProcessRow]:
    """Rows whose process lives, by role and member. A reused pid does not count: its start must agree."""
    rows: list[ProcessRow] = []
    for path in sorted(run_dir(state_dir).glob("*.json")):
        try:
            raw = json.loads(path.read_text())
            if alive(raw["pid"], raw["started"]):
                rows.append(
                    ProcessRow(
                        role=raw["role"],
                        member=str(raw["member"]),
                        pid=raw["pid"],
                        port=raw["port"],
                    )
                )
        except (OSError, ValueError, KeyError):
            continue  # removed, or written by something else: not a live process of ours
    return rows


def started(pid: int) -> str | None:
    """What tells this process from every other one that has or had its pid; None when none runs (a zombie does not)."""
    try:
        # The name, in parentheses, may hold spaces and parentheses of its own.
        fields = (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[STATE] in ENDED else f"{_boot()}:{fields[START_TICKS]}"


def alive(pid: int, started_as: str | None) -> bool:
    """True while the process runs that was `started_as` (a zombie does not)."""
    return started_as is not None and started(pid) == started_as


@cache
def _boot() -> str:
    """Which boot of which machine; empty where the kernel does not say: then pid and ticks must do."""
    try:
        return (PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
