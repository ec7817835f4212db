"""The whole local stack: up, down, reset and its environment. Every function may be repeated in any state."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from infra.local.config import (
    LARGEST_PORT,
    MOST_BROKERS,
    StackConfig,
    load_config,
    make_config,
    named_ports,
    number_from_env,
)
from infra.local.jars import fetch_kafka
from infra.local.specs import process_env, stack_env
from infra.supervision import registry
from infra.supervision.lock import lock_holder
from infra.supervision.phase import SERVERS_ONLY, TIED, Phase, read_phase, write_phase
from infra.supervision.place import REPOSITORY, default_state_dir
from infra.supervision.ports import StackError, free_ports, is_free, listen, owner_of
from infra.supervision.process import python, tail
from infra.supervision.supervisor import end_leftovers

Say = Callable[[str], None]
SUPERVISOR_S = 60.0  # until it reports that it runs: a second, or many on a busy machine; its death is noticed at once
BOOT_DEADLINE_S = 90.0
STOP_DEADLINE_S = 60.0  # applications 25 s, then servers 25 s
POLL_INTERVAL_S = 0.1


def start_servers(state_dir: Path, *, tied: bool = False, say: Say = lambda _: None) -> dict[str, str]:
    """Start Kafka, Redis and Postgres under a supervisor; returns the environment with their addresses.

    `tied` ends them when the calling process ends (for test fixtures). If they run already, it only returns the environment.
    """
    return start(state_dir, servers_only=True, tied=tied, say=say)


def start(state_dir: Path, *, servers_only: bool = False, tied: bool = False, say: Say = print) -> dict[str, str]:
    """Launch the supervisor and wait until everything is started. Raises StackError with the reason if that fails.

    Started does not mean ready: see `readiness.wait_ready`.
    """
    state_dir = state_dir.absolute()
    state_dir.mkdir(parents=True, exist_ok=True)
    if not servers_only and read_phase(state_dir).detail == SERVERS_ONLY:
        stop(state_dir, say)  # only the servers run: replace their supervisor by one for everything
    if supervisor_pid(state_dir) is None:
        fetch_kafka(say)
        if end_leftovers(state_dir, ask=False):
            say("waited for the processes of an earlier supervisor to end")
        config = _settle_config(state_dir, servers_only, say)
        write_phase(state_dir, Phase("starting"))
        _launch(config, state_dir, servers_only, tied)
    _wait_started(state_dir, say)
    settled = load_config(state_dir)
    assert settled is not None  # written before the supervisor was launched
    return stack_env(settled)


def stop(state_dir: Path, say: Say = print) -> None:
    """End all processes of this state: in order if a supervisor lives, else all at once."""
    state_dir = state_dir.absolute()
    pid = supervisor_pid(state_dir)
    if pid is not None:
        _stop_supervisor(pid, say)
    left = end_leftovers(state_dir, ask=True)
    say("stopped" if pid is not None or left else "nothing was running")


def reset(state_dir: Path, say: Say = print) -> None:
    """Stop, and delete the state. The cache with Kafka's jars is elsewhere and stays."""
    stop(state_dir, say)
    if state_dir.exists():
        shutil.rmtree(state_dir, ignore_errors=True)
        say(f"{'could not delete all of' if state_dir.exists() else 'deleted'} {state_dir}")


def use_stack_env(state_dir: Path | None = None) -> bool:
    """Connect this process to the local stack, if there is one: the stack's environment becomes our default."""
    state_dir = state_dir or default_state_dir()
    os.environ.setdefault("THRONES_STATE_DIR", str(state_dir))
    config = load_config(state_dir)
    if config is None:
        return False
    if os.environ.get("PORT") == "0":  # for `up`: a free one; it is known by now
        del os.environ["PORT"]
    for key, value in process_env(config, state_dir).items():
        os.environ.setdefault(key, value)
    return True


def supervisor_pid(state_dir: Path) -> int | None:
    """The supervisor in the registry; if its row is lost, the process that holds the lock of the state."""
    rows = (row["pid"] for row in registry.live_rows(state_dir) if row["role"] == "supervisor")
    return next(rows, None) or lock_holder(state_dir)


def _settle_config(state_dir: Path, servers_only: bool, say: Say) -> StackConfig:
    brokers = number_from_env("BROKERS", MOST_BROKERS) or 0
    config = load_config(state_dir) or make_config(brokers or 1)
    if brokers and brokers != config.brokers:
        raise StackError(f"this state has {config.brokers} broker(s), not {brokers}; `make reset` first")
    config.jwt_secret = os.environ.get("JWT_SECRET") or config.jwt_secret
    _settle_server_ports(config, say)
    if not servers_only:
        _settle_port(config)
    config.save(state_dir)
    return config


def _settle_server_ports(config: StackConfig, say: Say) -> None:
    """Keep the stored ports. One that another process took is named, and replaced unless the user asked for it."""
    asked = set(named_ports(config.brokers).values())
    for field in ("redis_port", "postgres_port", "payment_gateway_port"):
        port = getattr(config, field)
        if not is_free(port):
            setattr(config, field, _replacement(port, port in asked, say))
    for ports in (config.kafka_ports, config.controller_ports):
        ports[:] = [port if is_free(port) else _replacement(port, port in asked, say) for port in ports]


def _replacement(port: int, asked_for: bool, say: Say) -> int:
    other = free_ports(1)[0]
    if asked_for:
        raise StackError(f"port {port} is in use by {owner_of(port)}; {other} is free")
    say(f"port {port} is in use by {owner_of(port)}; taking {other}")
    return other


def _settle_port(config: StackConfig) -> None:
    """PORT if given (0: a free one), else the stored one. Raises StackError, which names the port's owner."""
    asked = number_from_env("PORT", LARGEST_PORT)
    if asked == 0:
        config.port = config.port if config.port >= 20_000 and is_free(config.port) else free_ports(1)[0]
    elif asked:
        config.port = asked
    listen(config.port).close()


def _launch(config: StackConfig, state_dir: Path, servers_only: bool, tied: bool) -> None:
    log = state_dir / "logs" / "supervisor-1.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    arguments = [flag for flag, wanted in ((SERVERS_ONLY, servers_only), (TIED, tied)) if wanted]
    with log.open("ab") as output:
        process = subprocess.Popen(
            python("-m", "thrones", "supervise", *arguments),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=REPOSITORY,
            env={**os.environ, **process_env(config, state_dir)},
            start_new_session=True,
        )
    until = time.monotonic() + SUPERVISOR_S
    while supervisor_pid(state_dir) is None:
        if process.poll() is not None or time.monotonic() > until:
            raise StackError(f"the supervisor does not start; the end of {log}:\n{tail(log)}")
        time.sleep(POLL_INTERVAL_S)


def _wait_started(state_dir: Path, say: Say) -> None:
    reported = ""
    until = time.monotonic() + BOOT_DEADLINE_S
    while (phase := read_phase(state_dir)).name != "running":
        if phase.name == "failed":
            raise StackError(phase.detail)
        if supervisor_pid(state_dir) is None:
            log = state_dir / "logs" / "supervisor-1.log"
            raise StackError(f"the supervisor ended; the end of {log}:\n{tail(log)}")
        if time.monotonic() > until:
            raise StackError(f"still {phase.name} after {BOOT_DEADLINE_S:.0f} s; see {state_dir / 'logs'}")
        if phase.name != reported:
            reported = phase.name
            say(reported)
        time.sleep(POLL_INTERVAL_S)


def _stop_supervisor(pid: int, say: Say) -> None:
    say("stopping")
    with contextlib.suppress(psutil.NoSuchProcess):  # it has ended by itself
        process = psutil.Process(pid)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_DEADLINE_S)
        except psutil.TimeoutExpired:
            say("the supervisor does not stop: killing it")
            process.kill()
