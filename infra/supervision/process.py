"""Starts child processes from a `ProcessSpec`. A child ends when its parent dies, and logs to its own file."""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

PR_SET_PDEATHSIG = 1
LOG_LIMIT_BYTES = 16 * 1024 * 1024
LOGS_KEPT = 3
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """What to run and how to end it. `env` is added to the parent's environment; `fds` are inherited listening sockets."""

    role: str
    member: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    fds: tuple[int, ...] = ()
    port: int | None = None
    cwd: Path | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    stop_timeout_s: float = 25.0
    registers_itself: bool = True
    """False for servers: the supervisor writes their rows."""
    prepare: Callable[[], Awaitable[None]] | None = None
    """Awaited before every start; idempotent."""
    healthy: Callable[[], Awaitable[bool]] | None = None
    """One check; the supervisor repeats it."""
    before_exec: Callable[[], None] | None = None
    """Runs in the child between fork and exec, to drop privileges. It must not take locks."""

    @property
    def name(self) -> str:
        return f"{self.role}-{self.member}"


async def spawn(spec: ProcessSpec, log: Path | None) -> asyncio.subprocess.Process:
    """Start it, and append its output to `log` (None: to our own output).

    The kernel sends the child its stop signal when this process dies for any reason.
    """
    parent = os.getpid()

    def in_child() -> None:
        if spec.before_exec:
            spec.before_exec()
        # After the change of user, because that would clear it.
        _libc.prctl(PR_SET_PDEATHSIG, int(spec.stop_signal), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)  # the parent died before the line above

    with _output(log) as output:
        return await asyncio.create_subprocess_exec(
            *spec.argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=spec.cwd,
            env={
                **os.environ,
                **spec.env,
                "THRONES_ROLE": spec.role,
                "THRONES_MEMBER": spec.member,
            },
            pass_fds=spec.fds,
            start_new_session=True,  # Ctrl-C reaches the supervisor only, which then stops them in order
            preexec_fn=in_child,
        )


@contextlib.contextmanager
def _output(log: Path | None) -> Iterator[IO[bytes] | None]:
    if log is None:
        yield None
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        yield file


async def run(*argv: str, log: Path, before_exec: Callable[[], None] | None = None) -> int:
    """Run a short program with its output in `log`; returns its exit code."""
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, cwd="/", preexec_fn=before_exec
        )
    return await process.wait()


def rotate(log: Path) -> None:
    """Copy a log that is too large, and truncate it in place. Its writer appends, so it needs no signal."""
    if not log.exists() or log.stat().st_size < LOG_LIMIT_BYTES:
        return
    for n in range(LOGS_KEPT - 1, 0, -1):
        older = log.with_name(f"{log.name}.{n}")
        if older.exists():
            older.replace(log.with_name(f"{log.name}.{n + 1}"))
    log.with_name(f"{log.name}.1").write_bytes(log.read_bytes())
    os.truncate(log, 0)


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log, for people; empty if there is no log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 65_536))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""


def python(*arguments: str) -> tuple[str, ...]:
    """A command line for this interpreter."""
    return (sys.executable, *arguments)
