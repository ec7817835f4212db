"""Runs a second `thrones gateway` or `thrones sse` beside a stack, on a separate port."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.own_stack import get
from infra.supervision.place import REPOSITORY
from infra.supervision.ports import free_ports

from .stack import TooSlow

START_DEADLINE_S = 90.0
STOP_DEADLINE_S = 60.0
POLL_INTERVAL_S = 0.1


@dataclass(frozen=True, slots=True)
class Extra:
    port: int
    pids: list[int]  # of its workers

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def running(command: str, workers: int, state_dir: Path) -> AsyncIterator[Extra]:
    """Start it with the environment of this process, which names the stack's servers. Raises TooSlow.

    It has a separate registry: the stack's gateway keeps its rows.
    """
    port = free_ports(1)[0]
    environment = {
        **os.environ,
        "PORT": str(port),
        "API_WORKERS": str(workers),
        "THRONES_STATE_DIR": str(state_dir / f"extra-{port}"),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "thrones", command, cwd=REPOSITORY, env=environment, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        yield Extra(port, await _wait_ready(process, port, workers))
    finally:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_DEADLINE_S)
        except TimeoutError:
            process.kill()
            await process.wait()


async def _wait_ready(process: asyncio.subprocess.Process, port: int, workers: int) -> list[int]:
    until = time.monotonic() + START_DEADLINE_S
    while True:
        pids = [child.pid for child in psutil.Process(process.pid).children()]
        if len(pids) == workers and await asyncio.to_thread(_answers, port):
            return pids
        if process.returncode is not None or time.monotonic() > until:
            raise TooSlow(f"{workers} workers on port {port} do not answer")
        await asyncio.sleep(POLL_INTERVAL_S)


def _answers(port: int) -> bool:
    try:
        return get(f"http://127.0.0.1:{port}/health/ready")[0] == 200
    except OSError:
        return False
