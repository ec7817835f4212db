"""CPU seconds of a stack's processes by role, including children and ended children."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import psutil

from infra.supervision import registry

APART = ("payment-gateway", "generator")  # outside the measured system: shown, but not in its sum

Seconds = dict[str, float]  # by role


def read(state_dir: Path) -> Seconds:
    """CPU seconds since each process began, user and system."""
    used: Seconds = defaultdict(float)
    for row in registry.live_rows(state_dir):
        used[row["role"]] += _own_s(row["pid"]) if row["role"] == "supervisor" else _tree_s(row["pid"])
    return dict(used)


def _tree_s(pid: int) -> float:
    """CPU of a process, its live descendants, and the ended ones that they have waited for."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    return sum(_times_s(member, 4) for member in family)  # user, system, and both of ended children


def _own_s(pid: int) -> float:
    try:
        return _times_s(psutil.Process(pid), 2)
    except psutil.NoSuchProcess:
        return 0.0


def _times_s(process: psutil.Process, fields: int) -> float:
    try:
        return float(sum(process.cpu_times()[:fields]))
    except psutil.NoSuchProcess:
        return 0.0  # it has ended: its parent has counted it


def between(before: Mapping[str, float], after: Mapping[str, float]) -> Seconds:
    """The use between two readings. A process that was replaced in between counts from its start."""
    return {role: max(0.0, seconds - before.get(role, 0.0)) for role, seconds in after.items()}


def per_order_ms(used: Mapping[str, float], orders: int) -> Seconds:
    return {role: seconds * 1000 / max(1, orders) for role, seconds in used.items()}


def system_sum(by_role: Mapping[str, float]) -> float:
    return sum(value for role, value in by_role.items() if role not in APART)
