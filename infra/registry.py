"""Process rows in the state directory: a long-running process writes its own at start, readers get the live ones."""

import json
import os
from pathlib import Path
from typing import TypedDict

import psutil


class Row(TypedDict):
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
        "created": created(pid),
    }
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(row))
    draft.replace(path)  # a reader sees the old row or the new one, never half of one
    return path


def _taken(path: Path, pid: int) -> bool:
    try:
        raw = json.loads(path.read_text())
        return bool(raw["pid"] != pid and alive(raw["pid"], raw["created"]))
    except (OSError, ValueError, KeyError):
        return False


def live_rows(state_dir: Path | None = None) -> list[Row]:
    """Rows whose process lives, by role and member. A reused pid does not count: the start time must agree."""
    rows: list[Row] = []
    for path in sorted(run_dir(state_dir).glob("*.json")):
        try:
            raw = json.loads(path.read_text())
            if alive(raw["pid"], raw["created"]):
                rows.append(
                    Row(
                        role=raw["role"],
                        member=str(raw["member"]),
                        pid=raw["pid"],
                        port=raw["port"],
                    )
                )
        except (OSError, ValueError, KeyError):
            continue  # removed, or written by something else: not a live process of ours
    return rows


def created(pid: int) -> float | None:
    """Start time of a process in seconds since the epoch, or None when there is none."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None


def alive(pid: int, created_at: float | None) -> bool:
    """True while the process that was started at `created_at` runs (a zombie does not)."""
    try:
        process = psutil.Process(pid)
        # A second's tolerance: the boot time that psutil adds moves when the clock is set.
        return (
            process.status() != psutil.STATUS_ZOMBIE
            and created_at is not None
            and abs(process.create_time() - created_at) < 1.0
        )
    except psutil.NoSuchProcess:
        return False
