"""Reads the environment into one frozen `Settings`. A process with a bad setting does not start, and names all of them."""

import re
from functools import lru_cache
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar
from urllib.parse import quote

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

JWT_SECRET_MIN_BYTES = 32  # RFC 7518 section 3.2: an HS256 key is at least as long as the hash
# As browsers write the Origin header: lower case, no path, no trailing slash.
ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:]+])(:[0-9]{1,5})?")
KNOWN_BAD_SECRETS = frozenset({"your-secret-key-change-in-production", "changeme", "secret"})


class SettingsError(SystemExit):
    """The environment has bad settings. Carries the text for the operator and a non-zero exit code."""


class Settings(BaseSettings):
    """Field names are those of the environment variables. Units are in the names or in a comment."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", case_sensitive=False)

    thrones_profile: Literal["production", "development"] = "production"
    thrones_state_dir: Path = Path(".thrones")
    thrones_role: str = "tool"
    thrones_member: str = "1"

    kafka_bootstrap_servers: str = "127.0.0.1:9092"
    brokers: Annotated[int, Field(ge=1, le=3)] = 1
    warm_up_s: Annotated[float, Field(ge=0, le=60)] = 2.0  # of a local stack's brokers before it is ready; 0: none

    redis_url: str = "redis://127.0.0.1:6379/0"
    redis_timeout_s: float = 0.5
    redis_full_at_share: Annotated[float, Field(gt=0, le=1)] = 0.9  # of maxmemory: above it purchases are refused

    db_host: str = "127.0.0.1"
    db_port: int = 5432
    postgres_user: str = "postgres"
    postgres_password: SecretStr = SecretStr("")
    postgres_db: str = "flashsale"
    db_pool_min: Annotated[int, Field(ge=0)] = 1
    db_pool_max: Annotated[int, Field(ge=1)] = 8

    payment_gateway_url: str = "http://127.0.0.1:9090"
    worker_concurrency: Annotated[int, Field(ge=1)] = 4_000  # charges in flight per payment-stage member

    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    listen_address: str = "127.0.0.1"  # for all HTTP, metrics too; 0.0.0.0 in a container
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 0  # of every process except the gateway; 0: any free port
    api_workers: Annotated[int, Field(ge=1, le=64)] = 2
    order_workers: Annotated[int, Field(ge=0, le=64)] = 1
    payment_workers: Annotated[int, Field(ge=0, le=64)] = 1
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = ()
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()  # origins whose scripts may read our answers; `*`: all

    jwt_secret: SecretStr = SecretStr("")
    bcrypt_cost: Annotated[int, Field(ge=10, le=16)] = 12

    max_held: Annotated[int, Field(ge=1)] = (
        100_000  # orders per product that may hold units before reserve answers `busy`
    )
    max_wait_s: Annotated[float, Field(gt=0)] = (
        5.0  # expected wait in our pipeline from which on all purchases are refused
    )
    buys_per_second_per_user: Annotated[int, Field(ge=1)] = 50
    buys_per_second_per_address: Annotated[int, Field(ge=0)] = 0  # 0: no limit; many buyers may share one address
    registrations_per_minute_per_address: Annotated[int, Field(ge=0)] = 60  # 0: no limit
    declines_per_hour_per_user: Annotated[int, Field(ge=0)] = 20  # orders of one product; 0: no limit
    max_unpublished: Annotated[int, Field(ge=1)] = 10_000  # orders per gateway worker that Kafka has not acknowledged

    otel_exporter_otlp_endpoint: str = ""  # an OTLP collector over HTTP; empty: no tracing
    trace_sample_ratio: Annotated[float, Field(ge=0, le=1)] = 0.01  # of orders, decided by the gateway

    @model_validator(mode="before")
    @classmethod
    def _split_lists(cls, values: dict[str, object]) -> dict[str, object]:
        for name in ("trusted_proxies", "cors_origins"):
            raw = values.get(name)
            if isinstance(raw, str):
                values[name] = tuple(part.strip() for part in raw.split(",") if part.strip())
        return values

    @field_validator("trusted_proxies")
    @classmethod
    def _refuse_no_network(cls, proxies: tuple[str, ...]) -> tuple[str, ...]:
        for proxy in proxies:
            ip_network(proxy, strict=False)  # its ValueError says what is wrong
        return proxies

    @field_validator("cors_origins")
    @classmethod
    def _refuse_no_origin(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        if "*" in origins and len(origins) > 1:
            raise ValueError("* allows every origin: give no other one beside it")
        for origin in origins:
            if origin != "*" and not ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin} is not an origin like https://shop.example (lower case, no path)")
        return origins

    @property
    def development(self) -> bool:
        return self.thrones_profile == "development"

    @property
    def postgres_dsn(self) -> str:
        password = quote(self.postgres_password.get_secret_value(), safe="")
        return f"postgresql://{quote(self.postgres_user)}:{password}@{self.db_host}:{self.db_port}/{self.postgres_db}"

    @property
    def replication_factor(self) -> int:
        return min(self.brokers, 3)


class SigningSettings(Settings):
    """For processes that sign or check tokens. Only the development stack generates its secret."""

    @model_validator(mode="after")
    def _refuse_weak_secret(self) -> Self:
        secret = self.jwt_secret.get_secret_value()
        if len(secret.encode()) < JWT_SECRET_MIN_BYTES:
            raise ValueError(f"JWT_SECRET must have at least {JWT_SECRET_MIN_BYTES} bytes")
        if secret in KNOWN_BAD_SECRETS:
            raise ValueError("JWT_SECRET is a published default")
        return self


S = TypeVar("S", bound=Settings)


def _load(kind: type[S]) -> S:
    try:
        return kind()
    except ValidationError as error:
        faults = "\n".join(
            f"  {'.'.join(map(str, e['loc'])).upper() or 'SETTINGS'}: {e['msg']}" for e in error.errors()
        )
        raise SettingsError(f"these settings cannot be used:\n{faults}") from None


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The settings of this process, read once. Raises SettingsError (exit 1), which lists every fault."""
    return _load(Settings)


@lru_cache(maxsize=1)
def get_signing_settings() -> SigningSettings:
    """Like `get_settings`; it also refuses a missing, short or published JWT_SECRET."""
    return _load(SigningSettings)
