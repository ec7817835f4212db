"""The process specs of a local stack's servers, and the environment with their addresses."""

from pathlib import Path

from infra.local.config import StackConfig
from infra.local.kafka import bootstrap, kafka_specs
from infra.local.postgres import postgres_dsn, postgres_spec
from infra.local.valkey import redis_url, valkey_spec
from infra.supervision.process import ProcessSpec


def stack_env(config: StackConfig) -> dict[str, str]:
    """The addresses and passwords that outside tools and our own processes need."""
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
    """`stack_env`, and the variables that only our own processes read."""
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
