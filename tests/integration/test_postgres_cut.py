"""Connections that Postgres ends in the middle of a statement: whatever asyncpg makes of it, the statement is repeated."""

import asyncio

import asyncpg

from infra.lifecycle import background, cancelled
from infra.postgres.pool import UNAVAILABLE
from infra.waits import retry_until_ok

CUTS = 60
ASKING = 8


async def test_a_statement_whose_connection_is_cut_is_repeated_and_nothing_else_is_raised(pool: asyncpg.Pool) -> None:
    """Also while it is being prepared: asyncpg 0.31 then raises InternalClientError, which is no PostgresError."""
    asked = 0

    async def ask() -> None:
        nonlocal asked
        while not cancelled():
            # A new text each time is a new statement, so that some cuts come while one is prepared.
            question = f"SELECT {asked} + count(*) FROM generate_series(1, $1::int)"
            await retry_until_ok("postgres", UNAVAILABLE, pool.fetchval, question, 2_000)
            asked += 1

    async with background(*(ask() for _ in range(ASKING))):
        for _ in range(CUTS):
            before = asked
            await retry_until_ok("postgres", UNAVAILABLE, pool.execute, CUT)
            async with asyncio.timeout(30):
                while asked == before:  # noqa: ASYNC110 - the next cut meets them at work
                    await asyncio.sleep(0.001)
    assert asked >= CUTS


CUT = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
