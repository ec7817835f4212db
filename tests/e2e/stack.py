"""A whole running stack for end-to-end tests: its commands, its processes to be killed, its outside clients.

Nothing here looks inside the stores: what is known comes from `thrones` commands and from HTTP, as a stranger learns it.
"""

import asyncio
import json
import os
import random
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.buyers import run
from bench.plan import Plan
from bench.tally import Result
from infra.supervision.phase import read_phase
from infra.supervision.process import tail
from infra.supervision.registry import ProcessRow, live_rows, run_dir, started

THRONES = str(Path(sys.executable).with_name("thrones"))
# Settings that a developer's shell may have from `thrones env`: they would send our stack to another one's servers.
FOREIGN = [
    "KAFKA_BOOTSTRAP_SERVERS",
    "REDIS_URL",
    "POSTGRES_DSN",
    "DB_HOST",
    "DB_PORT",
    "POSTGRES_USER",
    "POSTGRES_PASSWORD",
    "POSTGRES_DB",
    "PAYMENT_GATEWAY_URL",
    "PORT",
    "JWT_SECRET",
    "THRONES_PROFILE",
    "THRONES_ROLE",
    "THRONES_MEMBER",
    "API_WORKERS",
    "ORDER_WORKERS",
    "PAYMENT_WORKERS",
    "BROKERS",
]
USERS = 5_000
UP_TIMEOUT_S = 150.0  # the machine is busy with other tests

GOOD_WEATHER = {"median_ms": 100, "sigma": 0.5, "hang": 0, "unavailable": 0, "rate_limited": 0, "declined": 0}
# The reference's weather, faster: everything that goes wrong goes wrong at its rate.
BAD_WEATHER = {
    "median_ms": 300,
    "sigma": 0.75,
    "hang": 0.01,
    "unavailable": 0.02,
    "rate_limited": 0.01,
    "declined": 0.05,
    "reset_after_capture": 0.01,
}


def told(file: Path) -> str:
    """What became of the process that wrote this row."""
    try:
        row = json.loads(file.read_text())
        pid, now = row["pid"], started(row["pid"])
    except (OSError, ValueError, KeyError) as error:
        return f"no row: {error!r}"
    if now == row["started"]:
        return f"pid {pid} runs"
    return (
        f"pid {pid} has ended"
        if now is None
        else f"pid {pid} is another process: it started as {now}, not {row['started']}"
    )


@dataclass
class Stack:
    """One stack in a state directory of its own, on free ports."""

    state_dir: Path

    def thrones(self, *arguments: str, timeout_s: float = 120.0, **more: str) -> "subprocess.CompletedProcess[str]":
        """Run a command; `more` is added to its environment."""
        return self.run((THRONES, *arguments), timeout_s, **more)

    def run(self, command: Sequence[str], timeout_s: float, **more: str) -> "subprocess.CompletedProcess[str]":
        kept = {name: value for name, value in os.environ.items() if name not in FOREIGN}
        return subprocess.run(
            command,
            env={**kept, "THRONES_STATE_DIR": str(self.state_dir), **more},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
            check=False,
        )

    def up(self, **more: str) -> None:
        done = self.thrones("up", timeout_s=UP_TIMEOUT_S, **({} if self._known else {"PORT": "0"}), **more)
        assert done.returncode == 0, done.stdout

    @property
    def _known(self) -> bool:
        return (self.state_dir / "stack.json").exists()

    def env(self) -> dict[str, str]:
        done = self.thrones("env", "--json")
        assert done.returncode == 0, done.stdout
        return dict(json.loads(done.stdout))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.env()['PORT']}"

    @property
    def tokens(self) -> Path:
        path = self.state_dir / "tokens.json"
        if not path.exists():
            done = self.thrones("tokens", "--users", str(USERS), "--out", str(path))
            assert done.returncode == 0, done.stdout
        return path

    def new_product(self, stock: int, *options: str) -> int:
        """A product of an id that nothing else takes: load runs and the demo count up from the highest they find."""
        product = random.randrange(10_000, 1_000_000)
        what = ("--id", str(product), "--name", "Oath", "--price", "9.99", "--stock", str(stock))
        done = self.thrones("product", "create", *what, *options)
        assert done.returncode == 0, done.stdout
        return product

    def set_weather(self, weather: dict[str, Any]) -> None:
        request = urllib.request.Request(
            f"{self.env()['PAYMENT_GATEWAY_URL']}/weather",
            data=json.dumps(weather).encode(),
            method="PUT",
            headers={"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=10).close()

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=10) as response:
            return json.load(response)

    def client_log(self, product: int) -> Path:
        return self.state_dir / f"clients-{product}.jsonl"

    async def buy(self, product: int, stop: asyncio.Event | None = None, **plan: Any) -> Result:
        """A load run against one product, written to its client log; `stop` ends it early."""
        options = {"seconds": 30.0, "retries": 0, "log": str(self.client_log(product)), "tokens": str(self.tokens)}
        return await run(Plan(**{"base_url": self.url, "products": (product,), **options, **plan}), stop)

    def audit(self, product: int, log: Path | None = None, wait_s: float = 60.0) -> dict[str, Any]:
        """The report on one product, its clients' log included; `ok` and the exit code agree."""
        log = log or self.client_log(product)
        arguments = ("--product", str(product), "--wait", str(wait_s), "--client-log", str(log), "--json")
        done = self.thrones("audit", *arguments, timeout_s=wait_s + 60)
        assert done.stdout.startswith("{"), done.stdout
        report: dict[str, Any] = json.loads(done.stdout.splitlines()[0])
        assert report["ok"] == (done.returncode == 0)
        return report

    def rows(self, role: str | None = None) -> list[ProcessRow]:
        """What `thrones status` says, without the cost of a command: it is asked many times a second."""
        return [row for row in live_rows(self.state_dir) if role in (None, row["role"])]

    def seen(self, *roles: str) -> str:
        """For a test that misses a process: what the registry knows, how busy the machine is, the last lines of the logs."""
        files = sorted(run_dir(self.state_dir).glob("*.json"))
        logs = [log for role in ("supervisor", *roles) for log in (self.state_dir / "logs").glob(f"{role}-*.log")]
        return "\n".join(
            [
                f"load average {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores; the stack: {' '.join(read_phase(self.state_dir))}",
                *(f"{file.name}: {told(file)}" for file in files),
                *(f"the end of {log.name}:\n{tail(log)}" for log in logs),
            ]
        )

    def down(self) -> None:
        done = self.thrones("reset")
        assert done.returncode == 0, done.stdout
