"""Alerts and dashboards speak of metrics that exist, and every alert says what to do."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from infra.metrics.definitions import ALL
from tests.unit.test_docs import read

ROOT = Path(__file__).parent.parent.parent
PROMETHEUS = ROOT / "infra" / "deploy" / "prometheus"
DASHBOARDS = sorted((ROOT / "infra" / "deploy" / "grafana" / "dashboards").glob("*.json"))
KINDS = {of.name: of.kind for of in ALL}


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> set[str]:
    return {rule["alert"] for rule in rules()}


def panels() -> list[dict[str, Any]]:
    return [panel for board in DASHBOARDS for panel in json.loads(board.read_text())["panels"]]


def expressions() -> list[str]:
    return [rule["expr"] for rule in rules()] + [target["expr"] for panel in panels() for target in panel["targets"]]


def metric_of(series: str) -> str | None:
    """The metric that tells a series; None where none does."""
    name = re.sub(r"_(bucket|sum|count)$", "", series)
    return name if KINDS.get(name) == "histogram" and name != series else series if series in KINDS else None


def series_in(text: str) -> set[str]:
    return set(re.findall(r"\bthrones_[a-z_]+", text))


def test_rules_and_dashboards_ask_for_metrics_that_exist() -> None:
    """A histogram for its buckets, sum or count, anything else for itself."""
    told = {
        series for text in [*expressions(), (PROMETHEUS / "rules_test.yml").read_text()] for series in series_in(text)
    }
    assert {series for series in told if metric_of(series) is None} == set()


def test_every_metric_is_on_a_dashboard() -> None:
    shown = {
        metric_of(series) for panel in panels() for target in panel["targets"] for series in series_in(target["expr"])
    }
    assert KINDS.keys() - shown == set()


def test_counters_are_asked_for_their_growth() -> None:
    """Their values begin anew with each process."""
    counters = {name for name, kind in KINDS.items() if kind == "counter"}
    for expression in expressions():
        grown = {
            series for part in re.findall(r"(?:rate|increase)\(([^()]*)\[", expression) for series in series_in(part)
        }
        assert series_in(expression) & counters <= grown, expression


def test_every_alert_has_a_heading_of_its_own_and_no_other_has() -> None:
    assert sorted(re.findall(r"^## (\w+)$", read("docs/alerts.md"), re.M)) == sorted(alerts())


def test_every_alert_is_raised_once_by_the_rules_own_tests() -> None:
    """tests/e2e/test_monitoring.py runs them."""
    wrong = yaml.safe_load((PROMETHEUS / "rules_test.yml").read_text())["tests"][1]
    expected = {re.findall(r'"(\w+)"', sample["labels"])[0] for sample in wrong["promql_expr_test"][0]["exp_samples"]}
    assert expected == alerts()


def test_panels_do_not_overlap_and_know_their_source() -> None:
    provisioned = yaml.safe_load((ROOT / "infra/deploy/grafana/provisioning/datasources/prometheus.yaml").read_text())
    assert DASHBOARDS
    for board in DASHBOARDS:
        taken: set[tuple[int, int]] = set()
        for panel in json.loads(board.read_text())["panels"]:
            at = panel["gridPos"]
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            assert not cells & taken, panel["title"]
            assert at["x"] + at["w"] <= 24
            taken |= cells
            assert panel["datasource"]["uid"] == provisioned["datasources"][0]["uid"]
