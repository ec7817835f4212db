"""Traces without servers: off is off, whose word counts on what is traced, and who is told of the step before."""

import io
import json
import logging
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import AsyncMock

import jsonschema
import pytest
import structlog
import yaml

from infra import logs, tracing
from infra.keep_alive import NotConnected
from infra.settings import Settings
from sale.payments.provider import HttpPaymentProvider
from schemas import topics
from schemas.codec import TRACE_HEADER, VERSION_HEADER
from streams.dead_letters import DeadLetters
from tests.collector import Collector, a_collector

TRACE, CLIENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{CLIENT}-01"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with a_collector() as receiving:
        yield receiving


@pytest.fixture
def traces(collector: Collector) -> Iterator[tracing.Tracing]:
    """This process traces every order."""
    tracing.start(Settings(otel_exporter_otlp_endpoint=collector.url, trace_sample_ratio=1, thrones_role="tests"))
    assert tracing.on is not None
    yield tracing.on
    tracing.stop()


def begun(traces: tracing.Tracing, traceparent: str | None) -> tracing.Span:
    span = traces.sample("buy", traceparent)
    assert span is not None
    return span


def test_off_is_the_default_and_loads_no_exporter() -> None:
    """(Of the library itself redis-py loads a part when it is there.)"""
    tracing.start(Settings())
    assert tracing.on is None
    assert tracing.current() is None
    code = "import sys, gateway.app, streams.payment_stage, consumers.projector; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "gateway.buying.traced_purchases" in loaded
    assert "opentelemetry.exporter" not in loaded


def test_a_clients_trace_goes_on_and_a_spoilt_one_begins_anew(traces: tracing.Tracing) -> None:
    assert begun(traces, PARENT).trace_id == TRACE
    for spoilt in (None, "", "nonsense", f"00-{'0' * 32}-{CLIENT}-01", PARENT.upper().replace("-", "_"), "\r\n"):
        fresh = begun(traces, spoilt)
        assert fresh.trace_id not in (TRACE, "0" * 32)
        assert re.fullmatch(f"00-{fresh.trace_id}-[0-9a-f]{{16}}-0[13]", fresh.traceparent)


def test_the_ratio_is_ours_whatever_clients_ask_for() -> None:
    """Anybody may send `sampled`: it must not fill the collector."""
    chosen = {}
    for ratio in (0.0, 0.2):
        traces = tracing.Tracing(Settings(otel_exporter_otlp_endpoint="http://127.0.0.1:1", trace_sample_ratio=ratio))
        chosen[ratio] = sum(traces.sample("buy", PARENT) is not None for _ in range(2_000))  # not ended: never sent
        traces.close()
    assert chosen[0.0] == 0
    assert 250 < chosen[0.2] < 550


def test_a_record_without_the_header_is_not_traced(traces: tracing.Tracing) -> None:
    assert traces.follow("store order", (VERSION_HEADER,)) is None
    span = traces.follow("store order", (VERSION_HEADER, (TRACE_HEADER, PARENT.encode())))
    assert span is not None
    assert tracing.trace_id_of(span.headers) == span.trace_id == TRACE
    assert tracing.trace_id_of((VERSION_HEADER,)) is None


def test_a_spans_headers_are_as_described(traces: tracing.Tracing) -> None:
    document = yaml.safe_load((Path(topics.__file__).parent / "asyncapi.yaml").read_text("utf-8"))
    headers = {name: value.decode() for name, value in begun(traces, PARENT).headers}
    jsonschema.validate(headers, document["components"]["schemas"]["headers"])


async def test_a_dead_letters_log_line_names_order_and_trace() -> None:
    publisher = AsyncMock()
    with structlog.testing.capture_logs() as lines:
        await DeadLetters(publisher).send("orders", 0, 0, b"o1", b"?", "odd", TRACE)
    assert [(line["order_id"], line["trace_id"]) for line in lines] == [("o1", TRACE)]


def test_what_goes_wrong_is_told_with_its_step(collector: Collector, traces: tracing.Tracing) -> None:
    with pytest.raises(OSError), begun(traces, PARENT) as span, tracing.batch_step("postgres", {"order": span}):
        raise OSError
    traces.close()
    told = {seen.name: (seen.parent, seen.failed) for seen in collector.trace(TRACE, 2)}
    buy = next(seen.id for seen in collector.spans if seen.name == "buy")
    assert told == {"postgres": (buy, True), "buy": (CLIENT, True)}


async def test_the_provider_is_told_only_of_the_step_that_asks_it(
    traces: tracing.Tracing, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []

    async def ask(_body: bytes, headers: str) -> None:
        sent.append(headers)
        raise NotConnected

    async with HttpPaymentProvider("http://127.0.0.1:1") as provider:
        monkeypatch.setattr(provider._charges, "ask", ask)
        await provider.charge("o1", 1, "USD")
        span = begun(traces, PARENT)
        await span.around(provider.charge("o2", 1, "USD"))
    assert sent == ["Idempotency-Key: o1\r\n", f"Idempotency-Key: o2\r\ntraceparent: {span.traceparent}\r\n"]


def test_a_log_line_within_a_step_carries_the_trace(traces: tracing.Tracing, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stdout", written)
    before = logging.getLogger().handlers[:]
    try:
        logs.configure("tests")
        with begun(traces, PARENT):
            logs.get_logger().warning("within", order_id="o1")
        logs.get_logger().warning("outside")
    finally:
        logging.getLogger().handlers[:] = before
    within, outside = map(json.loads, written.getvalue().splitlines())
    assert (within["trace_id"], within["order_id"]) == (TRACE, "o1")
    assert "trace_id" not in outside


def test_a_collector_that_is_away_holds_up_nobodys_end() -> None:
    before = set(threading.enumerate())
    tracing.start(Settings(otel_exporter_otlp_endpoint="http://127.0.0.1:1", trace_sample_ratio=1))
    assert tracing.on is not None
    for _ in range(2_000):
        begun(tracing.on, None).end()
    began = time.monotonic()
    tracing.stop()
    assert time.monotonic() - began < tracing.STOP_TIMEOUT_S + 5
    # A process would end now. Here its threads would go on trying, and draw pauses from `random` during other tests.
    for left in set(threading.enumerate()) - before:
        left.join(60)
        assert not left.is_alive()
