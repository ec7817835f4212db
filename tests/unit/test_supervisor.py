"""The supervisor keeps processes running, ends them in time, and takes them with it."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from infra.local.stack import stop, supervisor_pid
from infra.supervision import registry
from infra.supervision import supervisor as module
from infra.supervision.ports import StackError
from infra.supervision.process import LOG_LIMIT_BYTES, ProcessSpec, python, rotate, tail
from infra.supervision.supervisor import Supervisor, end_leftovers, leftovers

SLEEPER = "import time; print('up', flush=True); time.sleep(600)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPER}"


def spec(
    code: str = SLEEPER,
    role: str = "sleeper",
    stop_timeout_s: float = 5.0,
    healthy: Callable[[], Awaitable[bool]] | None = None,
) -> ProcessSpec:
    return ProcessSpec(
        role=role,
        member="1",
        argv=python("-c", code),
        stop_timeout_s=stop_timeout_s,
        registers_itself=False,
        healthy=healthy,
    )


async def pid_of(state_dir: Path, role: str = "sleeper", other_than: int = 0) -> int:
    """The pid of the role's live process that has begun to run its code."""
    async with asyncio.timeout(10):
        while True:
            pids = [row["pid"] for row in registry.live_rows(state_dir) if row["role"] == role]
            if pids and pids[0] != other_than and "up" in tail(state_dir / "logs" / f"{role}-1.log"):
                return pids[0]
            await asyncio.sleep(0.02)


async def test_a_killed_process_is_back_within_a_second_or_so(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path)
    supervisor.start([spec()])
    try:
        first = await pid_of(tmp_path)
        os.kill(first, signal.SIGKILL)
        killed = time.monotonic()
        await pid_of(tmp_path, other_than=first)
        assert time.monotonic() - killed < 3
    finally:
        await supervisor.stop()


async def test_quick_deaths_back_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_DELAY_S", 0.1)
    supervisor = Supervisor(tmp_path)
    supervisor.start([spec("print('up')")])
    log = tmp_path / "logs" / "sleeper-1.log"
    try:
        await asyncio.sleep(2.5)  # 0.1 + 0.2 + 0.4 + 0.8 s of waiting, and the starts
        starts = tail(log, 100).count("up")
        assert 2 <= starts <= 6
    finally:
        await supervisor.stop()


async def test_what_ignores_its_signal_is_killed_after_its_limit(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path)
    supervisor.start([spec(STUBBORN, stop_timeout_s=0.5)])
    pid = await pid_of(tmp_path)
    began = time.monotonic()
    await supervisor.stop()
    assert not psutil.pid_exists(pid)
    assert 0.5 <= time.monotonic() - began < 3


async def test_a_process_that_never_answers_is_named_with_its_last_lines(tmp_path: Path) -> None:
    async def never() -> bool:
        return False

    supervisor = Supervisor(tmp_path)
    dying = spec("raise SystemExit('no such column')", healthy=never)
    supervisor.start([dying])
    try:
        with pytest.raises(StackError, match=r"(?s)sleeper-1 does not come up.*no such column"):
            await supervisor.wait_healthy([dying], deadline_s=2)
    finally:
        await supervisor.stop()


async def test_children_end_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import asyncio; from pathlib import Path; from infra.supervision.supervisor import Supervisor\n"
        "from tests.unit.test_supervisor import spec\n"
        "async def main():\n"
        f"    Supervisor(Path({str(tmp_path)!r})).start([spec()])\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])  # noqa: ASYNC220 - started, not waited for
    child = psutil.Process(await pid_of(tmp_path))
    parent.kill()
    parent.wait()
    await asyncio.to_thread(child.wait, 5)
    assert leftovers(tmp_path) == []


async def test_leftovers_that_do_not_end_by_themselves_are_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LEFTOVERS_S", 0.3)
    supervisor = Supervisor(tmp_path)
    supervisor.start([spec(STUBBORN)])
    pid = await pid_of(tmp_path)
    (child,) = supervisor._children.values()
    child.stopping.set()  # so that it is not started again
    assert await asyncio.to_thread(end_leftovers, tmp_path, ask=True) == 1
    await supervisor.stop()
    assert not psutil.pid_exists(pid)


def test_a_reused_pid_is_not_taken_for_ours(tmp_path: Path) -> None:
    path = registry.register("relay", state_dir=tmp_path)
    assert [row["role"] for row in registry.live_rows(tmp_path)] == ["relay"]
    row = json.loads(path.read_text())
    boot, _, ticks = row["started"].partition(":")
    for other in (f"{boot}:{int(ticks) - 1}", f"another-boot:{ticks}"):
        path.write_text(json.dumps(row | {"started": other}))
        assert registry.live_rows(tmp_path) == []


@pytest.mark.parametrize("seconds", [-3600, -1, 1, 3, 3600])
def test_a_clock_that_is_set_hides_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int) -> None:
    """The kernel's boot time, in whole seconds since the epoch, moves with the clock; who reads it moves too."""
    registry.register("relay", state_dir=tmp_path)
    booted = psutil.boot_time()
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: booted + seconds)
    monkeypatch.setattr(time, "time", lambda real=time.time: real() + seconds)
    assert [row["role"] for row in registry.live_rows(tmp_path)] == ["relay"]


def test_where_the_kernel_names_no_boot_pid_and_ticks_tell_processes_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_boot", registry._boot.__wrapped__)
    stat = tmp_path / "42" / "stat"
    stat.parent.mkdir()
    monkeypatch.setattr(registry, "PROC", tmp_path)
    stat.write_text("42 (a (strange) name) S " + " ".join(map(str, range(4, 53))))
    assert registry.started(42) == ":22"
    assert registry.alive(42, ":22")
    stat.write_text(stat.read_text().replace(" S ", " Z "))
    assert registry.started(42) is None
    assert registry.started(43) is None


def test_a_supervisor_whose_row_is_lost_is_known_by_the_lock_that_it_holds(tmp_path: Path) -> None:
    imports = "from pathlib import Path; from infra.supervision.lock import supervisor_lock"
    code = f"{imports}\nwith supervisor_lock(Path({str(tmp_path)!r})): input()"
    assert supervisor_pid(tmp_path) is None
    holder = subprocess.Popen([sys.executable, "-c", f"{code}"], stdin=subprocess.PIPE)
    try:
        until = time.monotonic() + 20
        while supervisor_pid(tmp_path) is None and time.monotonic() < until:
            time.sleep(0.02)
        assert supervisor_pid(tmp_path) == holder.pid
        said: list[str] = []
        stop(tmp_path, said.append)
        assert said == ["stopping", "stopped"]
        assert supervisor_pid(tmp_path) is None
    finally:
        holder.kill()
        holder.communicate()


def test_a_process_started_by_hand_beside_another_takes_nobodys_name(tmp_path: Path) -> None:
    """Both are shown; who has ended leaves the name to the next."""
    first, second = (subprocess.Popen(["sleep", "60"]) for _ in range(2))
    try:
        registry.register("order-stage", pid=first.pid, state_dir=tmp_path)
        registry.register("order-stage", pid=second.pid, state_dir=tmp_path)
        registry.register("order-stage", pid=first.pid, port=7, state_dir=tmp_path)
        rows = {row["member"]: (row["pid"], row["port"]) for row in registry.live_rows(tmp_path)}
        assert rows == {"1": (first.pid, 7), str(second.pid): (second.pid, None)}
        first.kill()
        first.wait()
        registry.register("order-stage", state_dir=tmp_path)
        assert {row["member"]: row["pid"] for row in registry.live_rows(tmp_path)}["1"] == os.getpid()
    finally:
        for process in (first, second):
            process.kill()
            process.wait()


def test_a_log_that_grew_too_large_is_set_aside(tmp_path: Path) -> None:
    log = tmp_path / "relay-1.log"
    log.write_bytes(b"x" * LOG_LIMIT_BYTES)
    rotate(log)
    assert log.stat().st_size == 0
    assert (tmp_path / "relay-1.log.1").stat().st_size == LOG_LIMIT_BYTES
