"""The definitions in, docs/metrics.md out: `python -m infra.metrics.page`. A test says when to run it."""

from pathlib import Path

from infra.metrics.definitions import ALL
from infra.metrics.kinds import Definition

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
HEAD = """# Metrics

Written by `python -m infra.metrics.page` from [`definitions.py`](../infra/metrics/definitions.py); where they are served and
how Prometheus finds them is in [operations](operations.md#metrics), the alerts on them in the [runbook](runbook.md#alerts).

| Metric | Kind | Unit | Means | Do |
|---|---|---|---|---|
"""


def text() -> str:
    return HEAD + "".join(map(_row, ALL))


def _row(of: Definition) -> str:
    labels = f"{{{', '.join(of.labels)}}}" if of.labels else ""
    return f"| `{of.name}{labels}` | {of.kind} | {of.unit} | {of.meaning} | {of.to_do} |\n"


if __name__ == "__main__":
    PAGE.write_text(text())
