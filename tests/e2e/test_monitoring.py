"""A real Prometheus on a whole stack: it finds every process, its rules load, and every panel's question is one it can answer."""

import json
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.local.targets import SERVERS, targets_file
from infra.supervision.ports import free_ports
from tests.debian import program
from tests.unit.test_monitoring import PROMETHEUS, panels, rules

from .stack import GOOD_WEATHER, Stack

pytestmark = pytest.mark.timeout(300)  # the package may have to be fetched, the stack to be started
DEADLINE_S = 60.0
SHOWN = (  # told by each kind of process; they have values once something was bought
    "sum(thrones_gateway_accepted_total) > 0",
    'thrones_orders_placed_total{role="order-stage", outcome="new"} > 0',
    'thrones_orders_settled_total{role="payment-stage", status="confirmed"} > 0',
    'thrones_provider_answer_seconds_count{role="payment-stage", outcome="captured"} > 0',
    'thrones_status_projected_seconds_count{role="projector"} > 0',
    'thrones_mock_charges_total{role="payment-gateway", answer="200"} > 0',
    'thrones_reconciliation_expired_orders{role="reconciler"} == 0',
    'count(thrones_group_lag_records{role="relay"}) == 18',
    'thrones_stock_units{role="relay", part="sold"} > 0',
    'thrones_supervisor_starts_total{role="supervisor", process="gateway"} > 0',
    "count by (role) (thrones_loop_delay_seconds_count > 0)",
)


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prometheus-package")


@pytest.fixture
def prometheus(debian: Path, tmp_path: Path, stack: Stack) -> Iterator[str]:
    """The URL of one that scrapes the stack every second, on the local configuration."""
    config = (PROMETHEUS / "local.yml").read_text()
    for ours, here in (
        ("../../../.thrones/prometheus/targets.json", str(targets_file(stack.state_dir))),
        ("rules.yml", str(PROMETHEUS / "rules.yml")),
        ("interval: 5s", "interval: 1s"),
    ):
        assert ours in config
        config = config.replace(ours, here)
    (tmp_path / "prometheus.yml").write_text(config)
    [port] = free_ports(1)
    arguments = (
        f"--config.file={tmp_path}/prometheus.yml",
        f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    )
    with (tmp_path / "output.log").open("wb") as output:
        process = subprocess.Popen(
            [str(program("prometheus", "prometheus", debian)), *arguments], stdout=output, stderr=output
        )
    try:
        yield f"http://127.0.0.1:{port}/api/v1"
    finally:
        process.terminate()
        process.wait(20)


def ask(url: str, path: str, **parameters: str) -> Any:
    """What the API answers, or None while it does not."""
    try:
        with urllib.request.urlopen(f"{url}/{path}?{urllib.parse.urlencode(parameters)}", timeout=10) as response:
            return json.load(response)["data"]
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{path} {parameters}: {error.read().decode()}") from error
    except OSError:
        return None


def until(looked: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while not (found := looked()):
        assert time.monotonic() < deadline, "it does not come to be"
        time.sleep(0.2)
    return found


def test_the_rules_are_valid_and_each_alert_is_raised_when_it_should_be(debian: Path) -> None:
    """promtool: both configurations, the rules, and the rules' own tests."""
    promtool = str(program("promtool", "prometheus", debian))
    for arguments in (
        ("check", "config", "prometheus.yml"),
        ("check", "config", "local.yml"),
        ("test", "rules", "rules_test.yml"),
    ):
        done = subprocess.run([promtool, *arguments], cwd=PROMETHEUS, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


async def test_prometheus_finds_every_process_and_its_questions_have_answers(stack: Stack, prometheus: str) -> None:
    """Targets are the processes of `thrones status`, the gateway's workers as one; all are up; no panel asks in vain."""
    stack.set_weather(GOOD_WEATHER)
    product = stack.new_product(50)
    result = await stack.buy(product, mode="open", rate=20, seconds=2, follow=1.0)
    assert result.orders == 40

    roles = {row["role"] for row in stack.rows()} - set(SERVERS)
    assert {"gateway", "supervisor"} < roles, stack.seen("gateway")

    def all_up() -> bool:
        found = (ask(prometheus, "targets") or {}).get("activeTargets", [])
        up = {target["labels"]["role"] for target in found if target["health"] == "up"}
        return up == roles and all(target["health"] == "up" for target in found)

    until(all_up)
    loaded = [rule for group in ask(prometheus, "rules")["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in loaded} == {rule["alert"] for rule in rules()}
    for query in SHOWN:
        found = until(lambda: ask(prometheus, "query", query=query)["result"])  # noqa: B023 # called at once
        assert found, query
    assert {sample["metric"]["role"] for sample in found} == roles
    for panel in panels():
        for target in panel["targets"]:
            query = target["expr"].replace("$__rate_interval", "1m").replace("$product", ".*")
            assert ask(prometheus, "query", query=query) is not None, panel["title"]
