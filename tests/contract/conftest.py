"""The real mock payment gateway as a process of its own, on a free port, with its own ledger."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from schemas.ids import OrderId, new_order_id

STARTS_WITHIN_S = 20.0
CALM = {"median_ms": 1, "hang": 0, "unavailable": 0, "rate_limited": 0, "declined": 0, "reset_after_capture": 0}


class GatewayProcess:
    """Start, kill -9, ask. Everything it knows lies in `ledger`."""

    def __init__(self, state_dir: Path) -> None:
        self.ledger = state_dir / "payments" / "ledger.jsonl"
        self.url = f"http://127.0.0.1:{free_port()}"
        self._environment = os.environ | {"THRONES_STATE_DIR": str(state_dir), "PAYMENT_GATEWAY_URL": self.url}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, **weather: float) -> None:
        command = [sys.executable, "-m", "infra.local.payment_gateway"]
        self._process = subprocess.Popen(command, env=self._environment)
        give_up_at = time.monotonic() + STARTS_WITHIN_S
        while not self._answers():
            assert self._process.poll() is None, "the payment gateway ended while starting"
            assert time.monotonic() < give_up_at, "the payment gateway did not start in time"
            time.sleep(0.02)
        self.weather(**weather)

    def end(self, how: signal.Signals) -> int:
        """Send the signal, wait; the exit code. Nothing happens where nothing runs."""
        if self._process is None:
            return 0
        process, self._process = self._process, None
        process.send_signal(how)
        return process.wait(timeout=10)

    @property
    def running(self) -> bool:
        return self._process is not None

    def captures(self, prefix: str) -> list[str]:
        """The order ids that begin with `prefix`, once per capture."""
        orders = [capture["orderId"] for capture in self.ask("/ledger")]
        return [order for order in orders if order.startswith(prefix)]

    def weather(self, **changes: float | None) -> None:
        self.ask("/weather", "PUT", CALM | changes)

    def ask(self, path: str, method: str = "GET", body: object = None) -> Any:
        data = None if body is None else msgspec.json.encode(body)
        request = urllib.request.Request(self.url + path, data=data, method=method)
        with urllib.request.urlopen(request, timeout=5) as answer:
            return msgspec.json.decode(answer.read())

    def _answers(self) -> bool:
        try:
            return bool(self.ask("/health"))
        except OSError:
            return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def running_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    process = GatewayProcess(tmp_path_factory.mktemp("gateway"))
    process.start()
    yield process
    process.end(signal.SIGKILL)


@pytest.fixture
def gateway(running_gateway: GatewayProcess) -> GatewayProcess:
    """Running, in calm weather; its ledger still knows the earlier tests' orders, so take new ids (`order`)."""
    if not running_gateway.running:
        running_gateway.start()
    running_gateway.weather()
    return running_gateway


@pytest.fixture
def order() -> OrderId:
    return new_order_id()
