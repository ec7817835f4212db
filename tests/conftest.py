"""Real servers for every test that asks: one Kafka, Redis and Postgres a test run, on free ports, ended with it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.local.stack import start_servers, stop

# Of the stack whose environment the person has loaded, if any: tests never touch that one.
OTHERS = (
    *("KAFKA_BOOTSTRAP_SERVERS", "REDIS_URL", "POSTGRES_DSN", "PAYMENT_GATEWAY_URL", "PORT", "BROKERS", "JWT_SECRET"),
    *("DB_HOST", "DB_PORT", "POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB", "THRONES_STATE_DIR"),
)


@pytest.fixture(scope="session", autouse=True)
def no_other_stack() -> None:
    for name in OTHERS:
        os.environ.pop(name, None)


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Where the test run's servers are: KAFKA_BOOTSTRAP_SERVERS, REDIS_URL, POSTGRES_DSN, DB_PORT, ..."""
    state_dir: Path = tmp_path_factory.mktemp("servers")
    yield start_servers(state_dir, tied=True)
    stop(state_dir, say=lambda _: None)
