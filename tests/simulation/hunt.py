"""A planted bug in; out the first seed that catches it, with the book it broke. `make chaos-mutants` prints the table."""

import asyncio
import os
import random
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from infra.local.stack import reset, start_servers
from infra.postgres.pool import connect_postgres
from infra.settings import Settings
from sale.tables.migrate import migrate_to_newest
from sale.tables.queries import SQL
from schemas.limits import DEFAULT_MAX_QUANTITY

from .planted import IN_SIMULATION, IN_SQL, Planted, PlantedInSql
from .seeds import SPAWN

SEEDS = 60
SQL_SEEDS = 5
BATCHES = 12
# Which book a finding is of, by the words the audit and the simulation use. docs/architecture.md has the list.
BOOKS = (
    ("I10", ("I10",)),
    ("I1", ("I1:", "does not add up")),
    ("I3", ("I3", "oversold", "counts as taken", "the database refused", "limit: ")),
    ("I5", ("nobody placed", "refused, yet taken", "without a row", "charged without")),
    ("I6", ("charged twice", "charged, not sold", "confirmed without a charge", "wrong amount")),
    ("I7", ("one key", "I7")),
    ("I9", ("I9", "two ends", "statuses differ")),
    ("I8", ("version", "follow", "epoch", "copies that differ", "done twice", "not in the log", "ahead of Redis")),
    ("I2", ("held entries", "entry left", "sold in Redis", "held in Redis", "initial in Redis", "for a buyer", "stranded")),
    ("I4", ("not quiet", "accepted", "not in Postgres", "not ended", "dead letter")),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Caught:
    """Where a bug was caught, and by which book."""

    seed: int
    problem: str

    @property
    def book(self) -> str:
        return next((book for book, words in BOOKS if any(word in self.problem for word in words)), "a process ended")


def hunt(bug: Planted, seeds: int = SEEDS) -> Caught | None:
    for seed in range(seeds):
        problems = bug.problems(seed)
        if problems:
            return Caught(seed, problems[0])
    return None


async def hunt_in_sql(bug: PlantedInSql, pool: asyncpg.Pool, *, planted: bool = True) -> Caught | None:
    """Random batches through the functions, each of the database's own books looked at after each."""
    if planted:
        body = await pool.fetchval("SELECT pg_get_functiondef($1::regproc)", bug.function)
        for old, new in bug.changes:
            assert old in body, f"{bug.function} has changed: plant this bug anew"
            body = body.replace(old, new)
        await pool.execute(body)
    for seed in range(SQL_SEEDS):
        problem = await _first_problem(pool, random.Random(seed), seed + 1)
        if problem:
            return Caught(seed, problem)
    return None


async def _first_problem(pool: asyncpg.Pool, draw: random.Random, product: int) -> str | None:
    await pool.fetch(SQL.create_product, product, "a thing", 999, "USD", 25, None, None, None, DEFAULT_MAX_QUANTITY)
    ids = [f"0192f000-0000-7000-8000-{product:04x}{n:08x}" for n in range(30)]
    ended: dict[str, str] = {}
    for _ in range(BATCHES):
        some = draw.sample(ids, 8)
        columns = ([draw.randint(1, 3) for _ in some], [1] * 8, [draw.randint(1, 60) for _ in some], [5] * 8, [0] * 8)
        await pool.fetch(SQL.place_orders, some, [product] * 8, [1] * 8, *columns, [None] * 8, [True] * 8)
        statuses = [draw.choice(("confirmed", "payment_failed", "needs_reconciliation")) for _ in some]
        await pool.fetch(SQL.settle_orders, some, statuses, [None] * 8, [None] * 8, [1] * 8, [2] * 8)
        problem = await _problem(pool, product, ended)
        if problem:
            return problem
    return None


async def _problem(pool: asyncpg.Pool, product: int, ended: dict[str, str]) -> str | None:
    taken = await pool.fetchval("SELECT taken FROM products WHERE id = $1", product)
    rows: Sequence[Any] = await pool.fetch(
        "SELECT id::text, status, quantity FROM orders WHERE product_id = $1", product
    )
    live = sum(row["quantity"] for row in rows if row["status"] not in ("failed", "payment_failed"))
    if taken != live:
        return f"I3: Postgres counts as taken: {taken}, expected {live}"
    for row in rows:
        if ended.get(row["id"], row["status"]) != row["status"]:
            return f"I9: {row['id']} was {ended[row['id']]}, and became {row['status']}"
        if row["status"] in ("confirmed", "payment_failed", "failed"):
            ended[row["id"]] = row["status"]
    return None


async def _hunt_all_in_sql(settings: Settings) -> list[tuple[str, Caught | None, bool]]:
    """Each in a database of its own, after the control in the same one."""
    found = []
    for number, bug in enumerate(IN_SQL):
        own = settings.model_copy(update={"postgres_db": f"planted_{number}"})
        admin = await asyncpg.connect(settings.postgres_dsn, timeout=10)
        await admin.execute(f"CREATE DATABASE {own.postgres_db}")
        await admin.close()
        await migrate_to_newest(own)
        pool = await connect_postgres(own)
        control = await hunt_in_sql(bug, pool, planted=False)
        await pool.execute("TRUNCATE orders, products CASCADE")
        found.append((bug.name, await hunt_in_sql(bug, pool), control is None))
        await pool.close()
    return found


def _on_own_servers() -> list[tuple[str, Caught | None, bool]]:
    with tempfile.TemporaryDirectory(prefix="thrones-mutants-", ignore_cleanup_errors=True) as folder:
        state_dir = Path(folder) / "state"
        try:
            env = start_servers(state_dir, tied=True)
            fields = {name.lower(): value for name, value in env.items()}
            settings = Settings.model_validate(fields | {"thrones_state_dir": state_dir})
            return asyncio.run(_hunt_all_in_sql(settings))
        finally:
            reset(state_dir, lambda _: None)


def _hunted(number: int) -> tuple[str, Caught | None, bool]:
    """Also the control: the code as it is, under the same seeds."""
    bug = IN_SIMULATION[number]
    caught = hunt(bug)
    last = caught.seed if caught else SEEDS - 1
    return bug.name, caught, not any(bug.problems(seed, planted=False) for seed in range(last + 1))


def _show(name: str, caught: Caught | None, control: bool) -> bool:
    """One line of the table; whether it is as it should be."""
    book, seed, said = (caught.book, str(caught.seed), caught.problem) if caught else ("-", "-", "NOT CAUGHT")
    print(f"{name:<52}{book:<6}{seed:<6}{'passes' if control else 'FAILS':<9}{said[:110]}", flush=True)
    return caught is not None and control


def main() -> int:
    print(f"{'planted bug':<52}{'book':<6}{'seed':<6}{'control':<9}what it said")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=SPAWN) as pool:
        good = [_show(*row) for row in pool.map(_hunted, range(len(IN_SIMULATION)))]
    good += [_show(*row) for row in _on_own_servers()]
    return int(not all(good))


if __name__ == "__main__":
    raise SystemExit(main())
