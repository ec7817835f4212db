"""The reference's 5-minute profile and the soak, run by `bench.load`: their results, and the growth of memory."""

import asyncio
import os
import subprocess
import sys

import msgspec
import psutil

from bench.load import LoadReport
from infra.supervision import registry
from infra.supervision.place import REPOSITORY

from .report import BooksNote, Report
from .size import Size
from .stack import PROBLEMS_KEPT, Stack

TIMEOUT_S = 3_600.0


async def measure(stack: Stack, report: Report, size: Size) -> None:
    for shape in size.profiles:
        stack.weather(**size.weather)
        before = _memory_mb(stack)
        load = await asyncio.to_thread(_load, shape, stack)
        after = _memory_mb(stack)
        for metric in ("successful_purchases", "server_errors"):
            report.notes[f"{shape}: {metric}"] = load.result.count(metric)
        report.notes[f"{shape}: total_order_time p95, ms"] = load.result.of("total_order_time").p95_ms
        for role, megabytes in after.items():
            report.notes[f"{shape}: {role} grew by, MB"] = round(megabytes - before.get(role, 0.0), 1)
        accepted = load.result.count("successful_purchases")
        report.books.append(BooksNote(shape, accepted, load.books_balance, load.problems[:PROBLEMS_KEPT]))


def _load(shape: str, stack: Stack) -> LoadReport:
    command = [sys.executable, "-m", "bench.load", shape, "--json"]
    environment = {**os.environ, "THRONES_STATE_DIR": str(stack.state_dir)}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, timeout=TIMEOUT_S, check=False
    )
    if not done.stdout:
        raise RuntimeError(f"bench.load {shape} ended with {done.returncode}; its output is above")
    return msgspec.json.decode(done.stdout, type=LoadReport)


def _memory_mb(stack: Stack) -> dict[str, float]:
    """Memory of the running processes, by role."""
    used: dict[str, float] = {}
    for row in registry.live_rows(stack.state_dir):
        used[row["role"]] = used.get(row["role"], 0.0) + psutil.Process(row["pid"]).memory_info().rss / 2**20
    return used
