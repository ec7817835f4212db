"""Runs process specs and keeps them alive: a process that ends is started again until `stop` is called.

After a first death the restart comes within half a second; after further deaths it backs off. The kernel sends the children
their stop signal when the supervisor dies. They are recorded, so that the next start can wait for them to end.
"""

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from infra.backoff import doubled
from infra.logs import get_logger
from infra.metrics.definitions import SUPERVISOR_DEATHS, SUPERVISOR_STARTS
from infra.supervision import registry
from infra.supervision.ports import StackError
from infra.supervision.process import ProcessSpec, rotate, spawn, tail

FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 15.0
STEADY_AFTER_S = 10.0  # after this long the next death counts as a first one
HEALTH_CHECK_INTERVAL_S = 0.15
ROTATE_INTERVAL_S = 5.0
LEFTOVERS_S = 15.0

_starts, _deaths = SUPERVISOR_STARTS.make(), SUPERVISOR_DEATHS.make()


@dataclass(slots=True)
class Child:
    spec: ProcessSpec
    process: asyncio.subprocess.Process | None = None
    started: str | None = None
    deaths: int = 0
    error: str = ""
    keeper: asyncio.Task[None] | None = None
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.returncode is None


class Supervisor:
    """Keeps specs running. `start` and `stop` take groups of them, in any order."""

    def __init__(self, state_dir: Path | None) -> None:
        """`state_dir` holds a log per child and a record of the children; None: they write to our own output."""
        self._state_dir = state_dir
        self._children: dict[str, Child] = {}
        self._log = get_logger()

    @property
    def specs(self) -> list[ProcessSpec]:
        return [child.spec for child in self._children.values()]

    def log_of(self, spec: ProcessSpec) -> Path | None:
        return self._state_dir and self._state_dir / "logs" / f"{spec.name}.log"

    def start(self, specs: Iterable[ProcessSpec]) -> None:
        for spec in specs:
            child = Child(spec)
            self._children[spec.name] = child
            child.keeper = asyncio.create_task(self._keep(child), name=spec.name)

    async def wait_healthy(self, specs: Iterable[ProcessSpec], deadline_s: float) -> None:
        """Return when all are healthy. Raises StackError with the end of the log of one that is not."""
        await asyncio.gather(*(self._wait_one(self._children[spec.name], deadline_s) for spec in specs))

    async def stop(self, specs: Iterable[ProcessSpec] | None = None) -> None:
        """Signal all of them at once, wait for each up to its own limit, then kill it. Without specs: stop everything."""
        names = [spec.name for spec in specs] if specs is not None else list(self._children)
        await asyncio.gather(*(self._stop_one(self._children.pop(name)) for name in names if name in self._children))
        self._record()

    async def housekeeping(self) -> None:
        """Rotate the logs, for ever."""
        while self._state_dir:
            for log in (self._state_dir / "logs").glob("*.log"):
                rotate(log)
            await asyncio.sleep(ROTATE_INTERVAL_S)

    async def _keep(self, child: Child) -> None:
        while not child.stopping.is_set():
            started = time.monotonic()
            code = await self._run_once(child)
            if child.stopping.is_set():
                return
            _deaths.labels(child.spec.role).inc()
            lived = time.monotonic() - started
            child.deaths = 1 if lived >= STEADY_AFTER_S else child.deaths + 1
            delay = doubled(FIRST_DELAY_S, child.deaths - 1, LONGEST_DELAY_S)
            facts = {"code": code, "lived_s": round(lived, 1), "again_in_s": delay}
            self._log.warning("process died", process=child.spec.name, **facts)
            await _set_within(child.stopping, delay)

    async def _run_once(self, child: Child) -> int | str:
        try:
            if child.spec.prepare:
                await child.spec.prepare()
            child.process = await spawn(child.spec, self.log_of(child.spec))
        except Exception as error:  # a supervisor must not give up: it logs the error and retries
            child.error = str(error)
            return f"not started: {type(error).__name__}: {error}"
        self._report_start(child.spec, child.process.pid)
        child.started = registry.started(child.process.pid)
        self._record()
        if child.stopping.is_set():  # stopped while it was starting
            _signal(child.process, child.spec.stop_signal)
        return await child.process.wait()

    def _report_start(self, spec: ProcessSpec, pid: int) -> None:
        _starts.labels(spec.role).inc()
        self._log.info("process started", process=spec.name, pid=pid)
        if not spec.registers_itself and self._state_dir:
            registry.register(spec.role, spec.member, spec.port, pid=pid, state_dir=self._state_dir)

    async def _wait_one(self, child: Child, deadline_s: float) -> None:
        looked = child.spec.healthy
        until = time.monotonic() + deadline_s
        while not (child.running and (looked is None or await looked())):
            if time.monotonic() > until or child.deaths > 2:
                raise StackError(self._why_not_up(child))
            await asyncio.sleep(HEALTH_CHECK_INTERVAL_S)

    def _why_not_up(self, child: Child) -> str:
        log = self.log_of(child.spec)
        reason = child.error or (f"the end of {log}:\n{tail(log)}" if log else "its output is above")
        return f"{child.spec.name} does not come up; {reason}"

    async def _stop_one(self, child: Child) -> None:
        child.stopping.set()
        if child.process and child.running:
            _signal(child.process, child.spec.stop_signal)
        if child.keeper is None:
            return
        try:
            async with asyncio.timeout(child.spec.stop_timeout_s):
                await asyncio.shield(child.keeper)
        except TimeoutError:
            self._log.error("killed: it did not stop in time", process=child.spec.name)
            if child.process:
                _signal(child.process, signal.SIGKILL)
            await child.keeper
        if self._state_dir:
            (registry.run_dir(self._state_dir) / f"{child.spec.name}.json").unlink(missing_ok=True)

    def _record(self) -> None:
        if self._state_dir is None:
            return
        rows = [
            {"name": child.spec.name, "pid": child.process.pid, "started": child.started}
            for child in self._children.values()
            if child.process and child.running
        ]
        path = _children_file(self._state_dir)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(rows))
        draft.replace(path)


def leftovers(state_dir: Path) -> list[int]:
    """Pids of live processes that an earlier supervisor of this state started, or that are in its registry."""
    found = {row["pid"] for row in registry.live_rows(state_dir) if row["role"] != "supervisor"}
    try:
        rows = json.loads(_children_file(state_dir).read_text())
        found |= {row["pid"] for row in rows if registry.alive(row["pid"], row["started"])}
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no record, or an incomplete one: only the registry is left
    return sorted(found - {os.getpid()})


def end_leftovers(state_dir: Path, ask: bool) -> int:
    """Wait until all have ended; the death of their supervisor has signalled them (`ask`: signal them here).

    Kills those that take longer than 15 s. Returns how many there were.
    """
    processes = [process for process in map(_process, leftovers(state_dir)) if process]
    if ask:
        for process in processes:
            _end(process)
    _, stubborn = psutil.wait_procs(processes, timeout=LEFTOVERS_S)
    for process in stubborn:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(stubborn, timeout=5)
    return len(processes)


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


def _end(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.Error):  # it has ended already, or belongs to another user
        process.send_signal(signal.SIGINT if process.name() == "postgres" else signal.SIGTERM)


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended since
        process.send_signal(number)


def _children_file(state_dir: Path) -> Path:
    return registry.run_dir(state_dir) / "children.list"


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
