"""Writes docs/metrics.md from the definitions: `python -m infra.metrics.page`. A test fails when the page is stale."""

from pathlib import Path

from infra.metrics.definitions import ALL
from infra.metrics.kinds import Definition

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
HEAD = """# Metrics

`python -m infra.metrics.page` writes this page from [`definitions.py`](../infra/metrics/definitions.py).
[Operations](observability.md#metrics) says where metrics are served and how Prometheus finds them; the
[alerts.md](alerts.md) has the alerts.

| Metric | Kind | Unit | Meaning | What to do |
|---|---|---|---|---|
"""


def text() -> str:
    return HEAD + "".join(map(_row, ALL))


def _row(of: Definition) -> str:
    labels = f"{{{', '.join(of.labels)}}}" if of.labels else ""
    return f"| `{of.name}{labels}` | {of.kind} | {of.unit} | {of.meaning} | {of.to_do} |\n"


if __name__ == "__main__":
    PAGE.write_text(text())
