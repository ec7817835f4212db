"""One order through every process by its trace: a whole stack of its own that traces all orders, and a collector."""

import json
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.collector import Collector, Seen, a_collector

from .stack import GOOD_WEATHER, Stack

TRACE, CLIENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"  # of the standard's examples
WAY = {  # step: (process, step before)
    "buy": ("gateway", "the client's"),
    "reserve": ("gateway", "buy"),
    "publish orders": ("gateway", "buy"),
    "store order": ("order-stage", "publish orders"),
    "postgres place_orders": ("order-stage", "store order"),
    "charge": ("payment-stage", "store order"),
    "settle": ("payment-stage", "charge"),
    "postgres settle_orders": ("payment-stage", "settle"),
    "redis settle": ("payment-stage", "settle"),
}
PROJECTED = {"store order", "settle"}  # each of them announces a status


@pytest.fixture
def traced() -> Iterator[tuple[Stack, Collector]]:
    options = {"TRACE_SAMPLE_RATIO": "1", "OTEL_BSP_SCHEDULE_DELAY": "200", "API_WORKERS": "1"}
    with tempfile.TemporaryDirectory(prefix="thrones-traces-", ignore_cleanup_errors=True) as folder:
        stack = Stack(Path(folder) / "state")
        with a_collector() as collector:
            try:
                stack.up(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **options)
                yield stack, collector
            finally:
                stack.down()


def buy(stack: Stack, product: int) -> str:
    """An order whose client traces too, followed to its end."""
    token = json.loads(stack.tokens.read_text())[0]
    headers = {
        "Authorization": f"Bearer {token}",
        "Content-Type": "application/json",
        "traceparent": f"00-{TRACE}-{CLIENT}-01",
    }
    body = json.dumps({"productId": product}).encode()
    request = urllib.request.Request(f"{stack.url}/api/order/buy-flash", data=body, headers=headers)
    with urllib.request.urlopen(request, timeout=10) as response:
        order = str(json.load(response)["orderId"])
    waiting = urllib.request.Request(f"{stack.url}/api/order/{order}/status?wait=25", headers=headers)
    with urllib.request.urlopen(waiting, timeout=40) as response:
        assert json.load(response)["status"] == "confirmed"
    return order


@pytest.mark.timeout(300)  # a stack is started for it
def test_one_trace_follows_an_order_from_its_client_through_every_process(traced: tuple[Stack, Collector]) -> None:
    stack, collector = traced
    stack.set_weather(GOOD_WEATHER)
    order = buy(stack, stack.new_product(5))

    spans = collector.trace(TRACE, len(WAY) + len(PROJECTED))
    names: dict[str, str] = {span.id: span.name for span in spans} | {CLIENT: "the client's"}

    def before(span: Seen) -> str:
        return names[span.parent]

    assert {s.name: (s.service.removeprefix("thrones-"), before(s)) for s in spans if s.name in WAY} == WAY
    projections = [span for span in spans if span.name == "project status"]
    assert {(span.service, before(span)) for span in projections} == {("thrones-projector", step) for step in PROJECTED}
    assert len(spans) == len(WAY) + len(PROJECTED)
    assert not any(span.failed for span in spans)

    replayed = stack.thrones("replay", "orders", "payments", "order-status", "--key", order, "--json")
    rows = [json.loads(line) for line in replayed.stdout.splitlines() if line.startswith('{"topic":')]
    carried = {row["topic"]: json.loads(row["headers"])["traceparent"].split("-")[1] for row in rows}
    assert carried == dict.fromkeys(("orders", "payments", "order-status"), TRACE)
