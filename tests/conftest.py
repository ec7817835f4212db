"""Real servers for whoever asks: Kafka, Redis and Postgres once a session; a database and an emptied Redis database a test.

A developer may reuse running servers: THRONES_TEST_ENV_FILE names a file of KEY=value lines as `thrones env` prints them.
Topics are shared by all tests of a session, so a test takes order and product ids of its own and reads from the end.
"""

import asyncio
import itertools
import os
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import hypothesis
import pytest
import structlog
from hypothesis import HealthCheck
from pydantic import SecretStr

from infra.kafka.client import create_topics
from infra.kafka.publisher import Publisher
from infra.local.stack import reset, start_servers
from infra.postgres.pool import connect_postgres
from infra.redis.client import Redis, connect_redis
from infra.settings import Settings
from sale.books.inventory import Inventory
from sale.tables.migrate import migrate_to_newest
from schemas.ids import ProductId

from .chaos.ground import Ground

Env = dict[str, str]
REDIS_DB = 9  # flushed by tests; 0 is the stack's own

# Real servers answer when they answer, so examples have no deadline of their own: the test's timeout bounds them.
hypothesis.settings.register_profile(
    "thrones", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
hypothesis.settings.load_profile("thrones")

_product_ids = itertools.count(1 + int.from_bytes(os.urandom(3), "big") * 100)


def read_env(path: Path) -> Env:
    lines = path.read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def settings_from(env: Env, *, database: str | None = None, state_dir: Path | None = None) -> Settings:
    """What a process of ours would read in the environment `env`, with a database of the test's own."""
    url = urlsplit(env["REDIS_URL"])
    return Settings(
        thrones_profile="development",
        thrones_state_dir=state_dir or Path(tempfile.gettempdir()),
        kafka_bootstrap_servers=env["KAFKA_BOOTSTRAP_SERVERS"],
        redis_url=urlunsplit(url._replace(path=f"/{REDIS_DB}")),
        redis_timeout_s=5.0,
        db_host=env["DB_HOST"],
        db_port=int(env["DB_PORT"]),
        postgres_user=env["POSTGRES_USER"],
        postgres_password=SecretStr(env["POSTGRES_PASSWORD"]),
        postgres_db=database or env["POSTGRES_DB"],
    )


def child_env(settings: Settings, **more: str) -> Env:
    """The environment in which a process of ours reads exactly `settings`."""
    return {
        **os.environ,
        "THRONES_PROFILE": settings.thrones_profile,
        "THRONES_STATE_DIR": str(settings.thrones_state_dir),
        "KAFKA_BOOTSTRAP_SERVERS": settings.kafka_bootstrap_servers,
        "REDIS_URL": settings.redis_url,
        "DB_HOST": settings.db_host,
        "DB_PORT": str(settings.db_port),
        "POSTGRES_USER": settings.postgres_user,
        "POSTGRES_PASSWORD": settings.postgres_password.get_secret_value(),
        "POSTGRES_DB": settings.postgres_db,
        "PAYMENT_GATEWAY_URL": settings.payment_gateway_url,
        **more,
    }


@pytest.fixture(autouse=True)
def unconfigured_logging() -> Iterator[None]:
    """A command under test sends log lines to its own captured stream, which the next test must not write to."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def servers() -> Iterator[Env]:
    """The environment that reaches running servers: a developer's, or ones that live as long as the session."""
    if reused := os.environ.get("THRONES_TEST_ENV_FILE"):
        yield read_env(Path(reused))
        return
    with tempfile.TemporaryDirectory(prefix="thrones-tests-", ignore_cleanup_errors=True) as folder:
        state_dir = Path(folder) / "state"
        try:
            yield start_servers(state_dir, tied=True, say=print)
        finally:
            reset(state_dir)


@pytest.fixture(scope="session")
def whole_stack() -> Iterator[Ground]:
    """Servers and every process of ours, for end-to-end tests and faults; stopped and deleted at the end."""
    with tempfile.TemporaryDirectory(prefix="thrones-e2e-", ignore_cleanup_errors=True) as folder:
        running = Ground(Path(folder) / "state")
        try:
            running.up()
            yield running
        finally:
            running.down()


def _in_postgres(env: Env, statement: str) -> None:
    async def execute() -> None:
        connection = await asyncpg.connect(settings_from(env).postgres_dsn, timeout=10)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(execute())


@pytest.fixture(scope="session")
def migrated_template(servers: Env) -> Iterator[str]:
    """A database with every migration applied, to be copied: faster than migrating for each test."""
    name = f"template_{uuid.uuid4().hex[:12]}"
    _in_postgres(servers, f"CREATE DATABASE {name}")
    asyncio.run(migrate_to_newest(settings_from(servers, database=name)))
    yield name
    _in_postgres(servers, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database(servers: Env, migrated_template: str) -> Iterator[str]:
    """A fresh, migrated database."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    _in_postgres(servers, f"CREATE DATABASE {name} TEMPLATE {migrated_template}")
    yield name
    _in_postgres(servers, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def redis_settings(servers: Env) -> Settings:
    """Settings for tests that need no database."""
    return settings_from(servers)


@pytest.fixture
def settings(servers: Env, database: str, tmp_path: Path) -> Settings:
    return settings_from(servers, database=database, state_dir=tmp_path)


@pytest.fixture
async def redis(redis_settings: Settings) -> AsyncIterator[Redis]:
    """An empty Redis database."""
    client = connect_redis(redis_settings, connections=16, timeout_s=5.0)
    await client.flushdb()
    yield client
    await client.aclose()


@pytest.fixture
def inventory(redis: Redis) -> Inventory:
    return Inventory(redis)


@pytest.fixture
async def pool(settings: Settings) -> AsyncIterator[asyncpg.Pool]:
    opened = await connect_postgres(settings, maximum=12)
    yield opened
    await opened.close()


@pytest.fixture(scope="session")
def topics(servers: Env) -> None:
    """All topics exist."""
    asyncio.run(create_topics(settings_from(servers)))


@pytest.fixture
async def publisher(redis_settings: Settings, topics: None) -> AsyncIterator[Publisher]:
    opened = await Publisher.start(redis_settings)
    yield opened
    await opened.stop()


@pytest.fixture
def new_product() -> Callable[[], ProductId]:
    """Product ids that no other test and no other session on these servers uses."""
    return lambda: ProductId(next(_product_ids) % 2_000_000_000 + 1)
