"""Servers that take a connection and never say a word, as one that is stopped does: each command says so once, and soon."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infra import reach
from infra.local import doctor
from infra.local.config import make_config
from infra.settings import get_settings, get_signing_settings
from thrones import app

COMMANDS = {
    "deploy": "Kafka Redis Postgres",
    "product create --id 7 --name x --price 1 --stock 1": "Kafka Redis Postgres",
    "stock rebuild 1": "Kafka Redis Postgres",
    "settle 01936f2e-7d1c-7a30-8000-0123456789ab --as confirmed --why x": "Kafka Redis Postgres",
    "operator create --email a@b.example --password 12345678": "Kafka Redis Postgres",
    "tokens --users 1 --out tokens.json": "Postgres",
    "sale show 1": "Postgres",
    "sale pause 1 --why x": "Kafka Redis Postgres",
    "audit": "Kafka Redis Postgres",
    "lag": "Kafka",
    "lag --live": "Kafka",
    "replay orders": "Kafka",
    "sql SELECT": "Kafka",
    "prove 1": "Kafka",
    "rewind": "Kafka Postgres",
    "report --out page.html": "Kafka",
    "dlq list": "Kafka Postgres",
    "dlq show 0:0": "Kafka Postgres",
    "dlq redrive": "Kafka Redis Postgres",
    "dlq resolve 0:0 --why x": "Kafka Postgres",
}


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """One socket that stands for all three servers: the kernel connects, nobody reads."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("THRONES_STATE_DIR", str(tmp_path))
        monkeypatch.setenv("THRONES_PROFILE", "development")
        monkeypatch.setenv("JWT_SECRET", "a secret that is long enough for HS256")
        monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", f"127.0.0.1:{port}")
        monkeypatch.setenv("REDIS_URL", f"redis://:hidden@127.0.0.1:{port}/0")
        monkeypatch.setenv("DB_HOST", "127.0.0.1")
        monkeypatch.setenv("DB_PORT", str(port))
        monkeypatch.setattr(reach, "ANSWER_S", 0.2)
        monkeypatch.chdir(tmp_path)
        get_settings.cache_clear()
        get_signing_settings.cache_clear()
        yield
    get_settings.cache_clear()
    get_signing_settings.cache_clear()


@pytest.mark.parametrize(("command", "servers"), COMMANDS.items(), ids=COMMANDS)
@pytest.mark.usefixtures("silent")
def test_a_server_that_hangs_is_named_once_and_soon(command: str, servers: str) -> None:
    started = time.monotonic()
    result = CliRunner().invoke(app, command.split())
    assert time.monotonic() - started < 5
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert [server for server in ("Kafka", "Redis", "Postgres") if f"{server} at 127.0.0.1:" in line] == servers.split()
    assert "does not answer (0.2 s)" in line
    assert "is the stack up?" in line
    assert "hidden" not in line


@pytest.mark.usefixtures("silent")
async def test_the_doctor_names_every_server_that_hangs_and_soon() -> None:
    port = int(os.environ["DB_PORT"])
    config = make_config(brokers=1)
    config.redis_port = config.postgres_port = port
    config.kafka_ports = [port]
    started = time.monotonic()
    found = await doctor._collect(config)
    assert time.monotonic() - started < 5
    assert [(finding.what, finding.ok) for finding in found] == [
        ("redis", False),
        ("postgres", False),
        ("kafka", False),
    ]
    assert all("does not answer" in finding.detail for finding in found)


def test_a_person_waits_five_seconds_at_most() -> None:
    assert reach.ANSWER_S + reach.CLOSE_S < 5
