"""The rows of the fault table that have a short form, one after the other on one stack: no violation of any book, whatever is killed.

The whole table, at length and with figures of time: `make chaos`, docs/reliability.md.
"""

from pathlib import Path

import pytest

from .campaign import Campaign
from .ground import Ground
from .results import append, read, show
from .rows import Row
from .table import SHORT

RATE = 60.0  # wishes a second, on any machine
SEED = 1

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("row", SHORT, ids=lambda row: row.name)
async def test_no_promise_breaks_in(row: Row, whole_stack: Ground, tmp_path: Path) -> None:
    """Books I1-I11 hold after the row's faults; figures of time are only reported."""
    result, outcome = await Campaign(whole_stack, RATE).run(row, SEED, row.short_s)
    print(show(result))
    assert result.violations == []
    assert row.faults is None or result.faults, f"nothing was done, so nothing is proven: {whole_stack.seen()}"
    assert outcome.report["log"]["accepted"] >= outcome.result.orders
    assert outcome.result.orders > 0, f"nothing was bought, so nothing is proven: {whole_stack.seen('gateway')}"
    append(result, tmp_path / "results.jsonl")
    assert read(tmp_path / "results.jsonl") == [result]
