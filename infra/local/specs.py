"""The stack's processes as specs: a stack's memory and the settings in, what the supervisor runs out."""

import os
from pathlib import Path

from infra.local.kafka import bootstrap, kafka_specs
from infra.local.place import REPOSITORY
from infra.local.ports import StackConfig
from infra.local.postgres import postgres_dsn, postgres_spec
from infra.local.process import ProcessSpec, python
from infra.local.valkey import redis_url, valkey_spec
from infra.settings import Settings


def stack_env(config: StackConfig) -> dict[str, str]:
    """What outside tools need to speak to this stack, and its processes to each other."""
    return {
        "KAFKA_BOOTSTRAP_SERVERS": bootstrap(config),
        "REDIS_URL": redis_url(config),
        "POSTGRES_DSN": postgres_dsn(config),
        "DB_HOST": "127.0.0.1",
        "DB_PORT": str(config.postgres_port),
        "POSTGRES_USER": config.postgres_user,
        "POSTGRES_PASSWORD": config.postgres_password,
        "POSTGRES_DB": config.postgres_db,
        "PAYMENT_GATEWAY_URL": f"http://127.0.0.1:{config.payment_gateway_port}",
        "PORT": str(config.port),
        "JWT_SECRET": config.jwt_secret,
    }


def process_env(config: StackConfig, state_dir: Path) -> dict[str, str]:
    """`stack_env` and what only our own processes read."""
    return {
        **stack_env(config),
        "BROKERS": str(config.brokers),
        "THRONES_PROFILE": "development",
        "THRONES_STATE_DIR": str(state_dir),
    }


def server_specs(config: StackConfig, state_dir: Path) -> list[ProcessSpec]:
    return [
        *kafka_specs(config, state_dir),
        valkey_spec(config, state_dir),
        postgres_spec(config, state_dir),
    ]


def gateway_specs(workers: int, fd: int, port: int) -> list[ProcessSpec]:
    """Worker processes that share one listening socket, which their parent holds open: a restart resets nobody."""
    return [_app("gateway", n, "gateway", "--fd", str(fd), fds=(fd,), port=port) for n in range(1, workers + 1)]


def application_specs(settings: Settings) -> list[ProcessSpec]:
    """Everything but the servers and the gateway."""
    return [
        _app("payment-gateway", 1, "payment-gateway"),
        *(_app("order-stage", n, "stage", "order") for n in range(1, settings.order_workers + 1)),
        *(_app("payment-stage", n, "stage", "payment") for n in range(1, settings.payment_workers + 1)),
        _app("projector", 1, "projector"),
        _app("relay", 1, "relay"),
        _app("reconciler", 1, "reconciler"),
    ]


def _app(
    role: str,
    member: int,
    *command: str,
    fds: tuple[int, ...] = (),
    port: int | None = None,
) -> ProcessSpec:
    return ProcessSpec(
        role=role,
        member=str(member),
        argv=python("-m", "thrones", *command),
        env={"PYTHONUNBUFFERED": "1", "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
        fds=fds,
        port=port,
        cwd=REPOSITORY,
    )
