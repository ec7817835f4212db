"""asyncpg's pool, connection and cursor over the model of Postgres."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from .port import Port
from .postgres_model import PostgresModel


class PostgresPort(Port):
    """asyncpg's pool and connection in one; `transaction` reads a snapshot, writes commit at once."""

    _frozen: PostgresModel | None = None
    _in_snapshot = False
    stale: PostgresModel | None = None  # what a planted bug reads instead of a snapshot of now

    async def fetch(self, statement: str, *args: Any) -> list[dict[str, Any]]:
        await self.travel()
        if self.world.away("postgres"):
            raise next(self.world.postgres.passing)
        rows = self._model().run(statement, args)
        self.step("postgres")
        if self.world.chance(self.world.chances.lost_reply):
            raise OSError("connection lost after the commit")
        await self.travel()
        return rows

    def _model(self) -> PostgresModel:
        if self._in_snapshot and self._frozen is None:
            self._frozen = self.stale or self.world.postgres.snapshot()
        return self._frozen or self.world.postgres

    async def execute(self, statement: str, *args: Any) -> None:
        if "advisory_lock" in statement:
            while not await self._lock(args):  # noqa: ASYNC110 - as the server would keep it waiting
                await asyncio.sleep(0.1)
            return
        await self.fetch(statement, *args)

    async def fetchrow(self, statement: str, *args: Any) -> dict[str, Any] | None:
        rows = await self.fetch(statement, *args)
        return rows[0] if rows else None

    async def fetchval(self, statement: str, *args: Any) -> Any:
        if "advisory_lock" in statement:
            return await self._lock(args)
        row = await self.fetchrow(statement, *args)
        return None if row is None else next(iter(row.values()))

    async def _lock(self, key: tuple[int, ...]) -> bool:
        await self.travel()
        if self.world.away("postgres"):
            raise OSError("postgres is away")
        holder = self.world.postgres.locks.get(key)
        if holder is not None and holder.actor.alive:
            return False
        self.world.postgres.locks[key] = self
        self.step("postgres lock")
        return True

    async def close(self, timeout: float | None = None) -> None:
        locks = self.world.postgres.locks
        for key in [key for key, holder in locks.items() if holder is self]:
            del locks[key]

    @asynccontextmanager
    async def transaction(self, isolation: str = "", readonly: bool = False) -> AsyncIterator[None]:
        self._in_snapshot = isolation == "repeatable_read"
        try:
            yield
        finally:
            self._in_snapshot, self._frozen = False, None

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator["PostgresPort"]:
        yield PostgresPort(self.world, self.actor)

    async def cursor(self, statement: str, *args: Any) -> "_Cursor":
        return _Cursor(await self.fetch(statement, *args))


class _Cursor:
    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._rows = rows

    async def fetch(self, count: int) -> list[dict[str, Any]]:
        taken, self._rows = self._rows[:count], self._rows[count:]
        return taken
