"""A running stack whose processes are killed, paused, held down and robbed of their data: what a fault is made of.

Whatever dies is started again by the stack's own supervisor, as in life; only where something must stay away is the
supervisor held too, and let go afterwards.
"""

import asyncio
import contextlib
import os
import random
import shutil
import signal
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil

from infra.local.config import load_config
from infra.local.specs import process_env, stack_env
from infra.settings import Settings
from infra.supervision import registry
from infra.supervision.ports import free_ports
from infra.supervision.registry import ProcessRow
from tests.e2e.stack import THRONES, Stack

from .clock import StackClock

APPLICATIONS = ("gateway", "order-stage", "payment-stage", "relay", "projector", "reconciler")
SERVERS = ("redis", "kafka", "postgres", "payment-gateway")
POLL_INTERVAL_S = 0.05
REGISTER_TIMEOUT_S = 60.0  # with every core busy; the supervisor itself waits half a second
UPS = 3  # its own deadline is for an idle machine; asked again, `thrones up` goes on waiting
DEATH_MAX_S = 40.0  # the slowest process may take 25 s to drain


@dataclass(frozen=True, slots=True)
class Vitals:
    """What a process takes: resident MiB, open files."""

    memory_mib: float
    files: int


@dataclass
class Ground(Stack):
    """One stack; `brokers` belongs to its state."""

    brokers: int = 1
    clock: StackClock | None = None  # None: the machine's own

    def up(self, **more: str) -> None:
        sizes = {"BROKERS": str(self.brokers), **({} if self._known else {"PORT": "0"}), **more}
        command = self.clock.around("up") if self.clock else (THRONES, "up")
        for _ in range(UPS):
            done = self.run(command, 180, **sizes)
            if done.returncode == 0:
                return
        raise AssertionError(done.stdout)

    def again(self, clock: StackClock | None) -> None:
        """All of it stopped, which must find every process, and started under this clock; its data stay."""
        rows = self.rows()
        done = self.thrones("down")
        assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["stopped"]), done.stdout
        assert all(gone(row["pid"]) for row in rows), f"`thrones down` left processes: {self.seen()}"
        self.clock = clock
        self.up()

    def fresh(self) -> None:
        """The same stack without any history."""
        self.down()
        self.up()

    def env(self) -> dict[str, str]:
        """As `thrones env`, without the cost of a command: it is asked while faults happen."""
        config = load_config(self.state_dir)
        assert config is not None, "no stack is up"
        return stack_env(config)

    def settings(self) -> Settings:
        """What a process of this stack reads."""
        env = {name.lower(): value for name, value in self.process_env().items()}
        return Settings(**{name: value for name, value in env.items() if name in Settings.model_fields})  # type: ignore[arg-type]  # pydantic reads texts

    def process_env(self) -> dict[str, str]:
        config = load_config(self.state_dir)
        assert config is not None, "no stack is up"
        return process_env(config, self.state_dir)

    async def all_of(self, *roles: str) -> list[ProcessRow]:
        """The processes of these roles, once there is one of each: one that has just ended is about to be replaced."""
        until = time.monotonic() + REGISTER_TIMEOUT_S
        while missing := [role for role in roles if not self.rows(role)]:
            assert time.monotonic() < until, f"no {' and no '.join(missing)} runs: {self.seen(*missing)}"
            await asyncio.sleep(POLL_INTERVAL_S)
        return [row for role in roles for row in self.rows(role)]

    async def pick(self, role: str, dice: random.Random) -> ProcessRow:
        return dice.choice(await self.all_of(role))

    async def replaced(self, row: ProcessRow) -> float:
        """Wait until another process has taken this one's place in the registry; seconds."""
        started = time.monotonic()
        while True:
            now = [other for other in self.rows(row["role"]) if other["member"] == row["member"]]
            if now and now[0]["pid"] != row["pid"]:
                return time.monotonic() - started
            assert time.monotonic() - started < REGISTER_TIMEOUT_S, f"{row} was not replaced: {self.seen(row['role'])}"
            await asyncio.sleep(POLL_INTERVAL_S)

    async def ended(self, pid: int) -> float:
        """Wait until a process has ended; seconds."""
        started = time.monotonic()
        while not gone(pid):
            assert time.monotonic() - started < DEATH_MAX_S, f"pid {pid} does not end"
            await asyncio.sleep(POLL_INTERVAL_S)
        return time.monotonic() - started

    @contextlib.asynccontextmanager
    async def paused(self, row: ProcessRow) -> AsyncIterator[None]:
        """SIGSTOP a process and all its children, SIGCONT at the end."""
        family = _family(row["pid"])
        try:
            for process in family:
                _send(process, signal.SIGSTOP)
            yield
        finally:
            for process in family:
                _send(process, signal.SIGCONT)

    @contextlib.asynccontextmanager
    async def away(self, row: ProcessRow, how: signal.Signals = signal.SIGKILL) -> AsyncIterator[None]:
        """End a process and keep it away: its supervisor is held meanwhile. Inside, its data may be touched."""
        with self._supervisor_held():
            os.kill(row["pid"], how)
            await self.ended(row["pid"])
            yield
        await self.replaced(row)

    @contextlib.contextmanager
    def _supervisor_held(self) -> Iterator[None]:
        rows = self.rows("supervisor")
        assert rows, f"no supervisor runs: {self.seen()}"
        supervisor = psutil.Process(rows[0]["pid"])
        supervisor.suspend()
        try:
            yield
        finally:
            supervisor.resume()

    async def kill_everything(self) -> None:
        """kill -9 of every process at once, supervisor first, so that it starts nothing again."""
        rows = sorted(
            await self.all_of("supervisor", *APPLICATIONS, *SERVERS), key=lambda row: row["role"] != "supervisor"
        )
        for row in rows:
            with contextlib.suppress(ProcessLookupError):  # a child that its supervisor's death ended first
                os.kill(row["pid"], signal.SIGKILL)
        for row in rows:
            await self.ended(row["pid"])

    @property
    def append_only(self) -> Path:
        """The directory of Redis's append-only file."""
        return self.state_dir / "redis" / "appendonlydir"

    def wipe_redis(self) -> None:
        shutil.rmtree(self.append_only)

    def wipe_kafka(self) -> None:
        for home in self.state_dir.glob("kafka-*"):
            shutil.rmtree(home)

    @contextlib.asynccontextmanager
    async def gateway_aside(self, **changed: str) -> AsyncIterator[str]:
        """One more gateway, of one worker, with some of its surroundings changed; its URL. Not in the stack's registry."""
        (port,) = free_ports(1)
        url = f"http://127.0.0.1:{port}"
        aside = self.state_dir / "aside"
        aside.mkdir(exist_ok=True)
        env = {**os.environ, **self.process_env(), "API_WORKERS": "1", "THRONES_STATE_DIR": str(aside), **changed}
        with (aside / "gateway.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                THRONES, "gateway", env={**env, "PORT": str(port)}, stdout=log, stderr=log
            )
        try:
            await self._serves(url, process)
            yield url
        finally:
            process.terminate()
            await process.wait()

    async def _serves(self, url: str, process: asyncio.subprocess.Process) -> None:
        until = time.monotonic() + REGISTER_TIMEOUT_S
        async with aiohttp.ClientSession() as session:
            while True:
                assert process.returncode is None, "the gateway aside has ended"
                assert time.monotonic() < until, "the gateway aside does not serve"
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(f"{url}/health/ready") as answer:
                        if answer.status == 200:
                            return
                await asyncio.sleep(POLL_INTERVAL_S)

    def vitals(self) -> dict[int, Vitals]:
        """Of each process of ours, by pid. Not of the mock provider, which keeps a ledger of all charges in its memory."""
        found = {}
        for row in self.rows():
            if row["role"] not in ("kafka", "redis", "postgres", "payment-gateway"):
                with contextlib.suppress(psutil.Error):  # gone since
                    process = psutil.Process(row["pid"])
                    found[row["pid"]] = Vitals(process.memory_info().rss / 2**20, process.num_fds())
        return found


def gone(pid: int) -> bool:
    """True when the process has ended."""
    return registry.started(pid) is None


def _family(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)
