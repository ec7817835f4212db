"""The books can fail: each of these bugs, planted alone, is caught within a few seeds, and the control is not."""

import asyncpg
import pytest

from .hunt import SEEDS, hunt, hunt_in_sql
from .planted import IN_SIMULATION, IN_SQL, Planted, PlantedInSql

pytestmark = pytest.mark.timeout(400)


@pytest.mark.parametrize("bug", IN_SIMULATION, ids=lambda bug: bug.name)
def test_a_planted_bug_is_caught(bug: Planted) -> None:
    caught = hunt(bug)
    assert caught, f"{bug.name}: not caught in {SEEDS} seeds"
    assert not bug.problems(caught.seed, planted=False), "the control fails too"


@pytest.mark.parametrize("bug", IN_SQL, ids=lambda bug: bug.name)
async def test_a_bug_planted_in_sql_is_caught(bug: PlantedInSql, pool: asyncpg.Pool) -> None:
    caught = await hunt_in_sql(bug, pool)
    assert caught, f"{bug.name}: not caught"
