"""What a local stack keeps between runs: its ports, passwords and ids, in `stack.json`."""

import os
import secrets
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from infra.supervision.ports import StackError, free_ports

DEFAULT_PORT = 8080
MOST_BROKERS = 3
LARGEST_PORT = 65_535


class StackConfig(msgspec.Struct, kw_only=True):
    """The contents of `stack.json`. All ports are loopback ports."""

    brokers: int
    port: int
    kafka_ports: list[int]
    controller_ports: list[int]
    redis_port: int
    postgres_port: int
    payment_gateway_port: int
    cluster_id: str
    postgres_user: str
    postgres_password: str
    postgres_db: str
    jwt_secret: str

    def save(self, state_dir: Path) -> None:
        path = state_dir / "stack.json"
        path.touch(mode=0o600)  # it holds passwords
        draft = path.with_suffix(".new")
        draft.touch(mode=0o600)
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(self)))
        draft.replace(path)


def load_config(state_dir: Path) -> StackConfig | None:
    """The stored configuration, or None if there is none yet."""
    try:
        return msgspec.json.decode((state_dir / "stack.json").read_bytes(), type=StackConfig)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise StackError(f"{state_dir / 'stack.json'} cannot be read ({error}); `make reset` starts afresh") from error


def make_config(brokers: int) -> StackConfig:
    """A new configuration: ports from the environment (DB_PORT, REDIS_URL, ...) or free ones, and new secrets."""
    named = named_ports(brokers)
    free = iter(free_ports(2 * brokers + 3))
    return StackConfig(
        brokers=brokers,
        port=DEFAULT_PORT,
        kafka_ports=[named.get(f"kafka-{n}") or next(free) for n in range(brokers)],
        controller_ports=[next(free) for _ in range(brokers)],
        redis_port=named.get("redis") or next(free),
        postgres_port=named.get("postgres") or next(free),
        payment_gateway_port=named.get("payment-gateway") or next(free),
        cluster_id=_cluster_id(),
        postgres_user=os.environ.get("POSTGRES_USER", "thrones"),
        postgres_password=os.environ.get("POSTGRES_PASSWORD") or secrets.token_urlsafe(24),
        postgres_db=os.environ.get("POSTGRES_DB", "flashsale"),
        jwt_secret=os.environ.get("JWT_SECRET") or secrets.token_urlsafe(48),
    )


def number_from_env(name: str, most: int) -> int | None:
    """The number in this variable, or None if it is not set. Raises StackError."""
    text = os.environ.get(name, "")
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and int(text) <= most):
        raise StackError(f"{name}={text!r} is not a number from 0 to {most}")
    return int(text)


def named_ports(brokers: int) -> dict[str, int]:
    """The ports that environment variables ask for."""
    named: dict[str, int] = {}
    if port := number_from_env("DB_PORT", LARGEST_PORT):
        named["postgres"] = port
    for key, role in (
        ("REDIS_URL", "redis"),
        ("PAYMENT_GATEWAY_URL", "payment-gateway"),
    ):
        port = urlsplit(os.environ.get(key, "")).port
        if port:
            named[role] = port
    bootstrap = [part for part in os.environ.get("KAFKA_BOOTSTRAP_SERVERS", "").split(",") if part]
    for n, part in enumerate(bootstrap[:brokers]):
        named[f"kafka-{n}"] = int(part.rpartition(":")[2])
    return named


def _cluster_id() -> str:
    """A UUID in Kafka's form: 22 characters of URL-safe base64. A leading dash would be an option to Kafka's tools."""
    while True:
        candidate = secrets.token_urlsafe(16)
        if not candidate.startswith("-"):
            return candidate
