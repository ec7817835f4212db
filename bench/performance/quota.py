"""Limits processes to a share of one core with a control group (Linux, version 1 or 2, as root)."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
PERIOD_US = 20_000  # short: a process that has used its share waits until the period ends
LEAST_US = 1_000  # the kernel's minimum


class NoQuota(Exception):
    """This machine does not allow a quota; the text says why."""


@contextmanager
def limited(groups: Iterable[Iterable[int]], share: float) -> Iterator[None]:
    """Limit each group of pids to `share` of a core within the context. Raises NoQuota."""
    made: list[Path] = []
    try:
        for number, pids in enumerate(groups):
            made.append(_make(f"thrones-bench-{os.getpid()}-{number}", share))
            for pid in pids:
                (made[-1] / "cgroup.procs").write_text(str(pid))
        yield
    except OSError as error:
        raise NoQuota(f"control groups cannot be used here: {error}") from error
    finally:
        for group in made:
            _remove(group)


def _make(name: str, share: float) -> Path:
    quota_us = max(LEAST_US, round(PERIOD_US * share))
    group = _controller() / name
    group.mkdir()
    if (group / "cpu.max").exists():
        (group / "cpu.max").write_text(f"{quota_us} {PERIOD_US}")
    else:
        (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
        (group / "cpu.cfs_quota_us").write_text(str(quota_us))
    return group


def _controller() -> Path:
    """The folder for groups with a CPU limit. Raises NoQuota."""
    if (ROOT / "cpu" / "cpu.cfs_quota_us").exists():
        return ROOT / "cpu"
    subtree = ROOT / "cgroup.subtree_control"
    if subtree.exists() and "cpu" in subtree.read_text().split():
        return ROOT
    raise NoQuota(f"no CPU controller under {ROOT}")


def _remove(group: Path) -> None:
    """Move its processes back to the root group, and remove it."""
    for pid in (group / "cgroup.procs").read_text().split():
        (group.parent / "cgroup.procs").write_text(pid)
    group.rmdir()
