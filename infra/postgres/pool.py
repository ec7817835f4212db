"""Postgres connection pools, with a time limit on everything: acquiring, a command, a lock, an idle transaction."""

import time
from typing import Any

import asyncpg

from infra.logs import REPEAT_AFTER_S, get_logger
from infra.metrics.definitions import POSTGRES_REFUSALS
from infra.settings import Settings

COMMAND_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 5.0

RECORDS_FAULT: tuple[type[Exception], ...] = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)
"""SQLSTATE classes 22 and 23, and values that asyncpg cannot send: the record itself can never be stored."""

UNAVAILABLE: tuple[type[Exception], ...] = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a connection that ended just as it was used
    *(kind for kind in asyncpg.PostgresError.__subclasses__() if kind not in RECORDS_FAULT),
)
"""All other errors. A server that is read-only, full, starting, failing over or without our tables says nothing about the
record. The write is retried (all our writes are guarded), and no record goes to the dead letters for it."""

_refused, _logged_at = POSTGRES_REFUSALS.make(), dict[str, float]()
log = get_logger()


async def connect_postgres(settings: Settings, *, maximum: int | None = None) -> asyncpg.Pool:
    """A pool that connects on first use, so that a process can start while Postgres is down; its health shows that."""
    pool = asyncpg.create_pool(
        settings.postgres_dsn,
        min_size=0,
        max_size=maximum or settings.db_pool_max,
        timeout=CONNECT_TIMEOUT_S,
        command_timeout=COMMAND_TIMEOUT_S,
        max_inactive_connection_lifetime=300.0,
        connect=_connect,
        reset=_nothing_to_reset,
        server_settings={
            "application_name": f"thrones-{settings.thrones_role}",
            "statement_timeout": "8s",
            "lock_timeout": "5s",
            "idle_in_transaction_session_timeout": "10s",
        },
    )
    return await pool


async def _nothing_to_reset(_: asyncpg.Connection) -> None:
    """Replaces asyncpg's reset, which is a query after every use. Our code never changes the session: no SET, and no lock
    that outlives its transaction. An open transaction is still rolled back."""


async def _connect(*args: Any, **kwargs: Any) -> asyncpg.Connection:
    """A connection whose errors are counted and logged, including that of connecting."""
    try:
        connection: asyncpg.Connection = await asyncpg.connect(*args, **kwargs)
    except Exception as error:
        count_refusal(error)
        raise
    connection.add_query_logger(lambda query: count_refusal(query.exception))
    return connection


def count_refusal(error: BaseException | None) -> None:
    """Count an error of Postgres by SQLSTATE, and log each SQLSTATE at most once every few seconds."""
    if not isinstance(error, (*UNAVAILABLE, *RECORDS_FAULT)):
        return
    state = getattr(error, "sqlstate", None) or "none"
    _refused.labels(state).inc()
    now = time.monotonic()
    if now - _logged_at.get(state, -REPEAT_AFTER_S) >= REPEAT_AFTER_S:
        _logged_at[state] = now
        whose = "the record's" if isinstance(error, RECORDS_FAULT) else "not the record's: tried again"
        log.warning("postgres refuses", sqlstate=state, fault=whose, error=repr(error))
