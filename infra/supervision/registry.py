"""The process registry, in the state directory: each long-running process writes its row at start; readers get live rows.

A process is identified by its pid, its start in the kernel's ticks since boot, and the boot. Setting the clock changes
none of these; a start time in seconds since the epoch would change.
"""

import json
import os
from functools import cache
from pathlib import Path
from typing import TypedDict

PROC = Path("/proc")
STATE, START_TICKS = 0, 19  # in /proc/PID/stat, counted from the field after the name
ENDED = frozenset("ZXx")  # zombies and dead processes


class ProcessRow(TypedDict):
    role: str
    member: str
    pid: int
    port: int | None


def run_dir(state_dir: Path | None = None) -> Path:
    if state_dir is None:
        from infra.settings import get_settings  # imported late: the command line starts without it

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
    """Write the row of this process (`port`: metrics or HTTP); a second call replaces it. Returns the row's file.

    If another live process has the name already, this one was started by hand beside it: its member name is its pid.
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
    draft.replace(path)  # atomic: a reader sees the old row or the new one
    return path


def _taken(path: Path, pid: int) -> bool:
    try:
        raw = json.loads(path.read_text())
        return bool(raw["pid"] != pid and alive(raw["pid"], raw["started"]))
    except (OSError, ValueError, KeyError):
        return False


def live_rows(state_dir: Path | None = None) -> list[ProcessRow]:
    """Rows of live processes, sorted by role and member. The start must match too, since pids are reused."""
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
            continue  # removed, or written by another program: not a live process of ours
    return rows


def started(pid: int) -> str | None:
    """What distinguishes this process from all others with its pid; None if none runs (a zombie does not run)."""
    try:
        # The name is in parentheses, and may contain spaces and parentheses.
        fields = (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[STATE] in ENDED else f"{_boot()}:{fields[START_TICKS]}"


def alive(pid: int, started_as: str | None) -> bool:
    """Whether the process that was `started_as` still runs (a zombie does not run)."""
    return started_as is not None and started(pid) == started_as


@cache
def _boot() -> str:
    """The id of this boot; empty if the kernel has none: then pid and ticks have to suffice."""
    try:
        return (PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
