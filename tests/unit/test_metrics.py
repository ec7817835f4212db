"""What every process tells of itself: one file of definitions, one style of names, and counting that costs next to nothing."""

import asyncio
import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from infra.local.targets import targets
from infra.metrics import definitions, page, serving
from infra.metrics.definitions import ALL
from infra.metrics.kinds import Definition, Delays, DelaysOf
from infra.metrics.vitals import report_vitals, sampled
from infra.supervision.registry import ProcessRow

ROOT = Path(__file__).parent.parent.parent
ROOMS = [
    *(ROOT / "thrones.py",),
    *(path for room in ("gateway", "streams", "consumers", "sale", "infra") for path in (ROOT / room).rglob("*.py")),
]
NOBODYS = {"user", "user_id", "order", "order_id", "key", "email", "address"}


@pytest.mark.parametrize("of", ALL, ids=lambda of: of.name)
def test_every_metric_has_a_name_in_prometheus_style_a_unit_and_a_meaning(of: Definition) -> None:
    assert re.fullmatch(r"thrones(_[a-z]+)+", of.name)
    assert (of.kind == "counter") == of.name.endswith("_total")
    assert of.name.endswith("_seconds") == (of.unit == "seconds")
    assert of.unit
    assert of.meaning.endswith(".")
    assert not NOBODYS & set(of.labels), "a label for each of them would be a series for each of them"


def test_no_name_is_given_twice() -> None:
    assert len({of.name for of in ALL}) == len(ALL)


def test_metrics_are_defined_in_one_file_and_every_one_of_them_is_counted() -> None:
    """Nobody else makes one with prometheus-client, and none is left over."""
    outside = [path for path in ROOMS if (ROOT / "infra" / "metrics") not in path.parents]
    assert [path for path in outside if "prometheus_client" in path.read_text()] == []
    used = "\n".join(path.read_text() for path in (*outside, ROOT / "infra" / "metrics" / "vitals.py"))
    constants = [name for name, value in vars(definitions).items() if isinstance(value, Definition)]
    assert [name for name in constants if f"{name}.make()" not in used] == []


def test_the_page_of_metrics_is_current() -> None:
    """Otherwise run `python -m infra.metrics.page`."""
    assert page.PAGE.read_text() == page.text()


def test_a_batch_of_delays_is_told_as_a_histogram_of_the_same_observations_would_be() -> None:
    """On bounds, between and beyond them; clocks that differ count as no delay."""
    bounds = (0.1, 1.0)
    delays = Delays(DelaysOf(name="thrones_x_seconds", unit="seconds", meaning="X.", bounds=bounds))
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    ours.register(delays)
    histogram = Histogram("thrones_x_seconds", "X.", buckets=bounds, registry=theirs)
    since_ms = [10_000, 9_900, 9_899, 9_000, 1, 12_000]
    delays.observe(10_000, since_ms)
    for at_ms in since_ms:
        histogram.observe(max(0, (10_000 - at_ms) / 1000))
    created = re.compile(r"^.*_created.*\n", re.M)
    assert created.sub("", generate_latest(ours).decode()) == created.sub("", generate_latest(theirs).decode())


async def test_a_process_samples_its_parts_while_it_runs_and_once_more_when_they_end() -> None:
    told = 0

    def tell() -> None:
        nonlocal told
        told += 1

    vitals = asyncio.create_task(report_vitals())
    with sampled(tell):
        async with asyncio.timeout(10):
            while told < 2:  # noqa: ASYNC110 - the sampler under test is the only one to know
                await asyncio.sleep(0.01)
    vitals.cancel()
    at_the_end = told
    assert at_the_end >= 3
    await asyncio.gather(vitals, return_exceptions=True)
    assert told == at_the_end


def test_workers_cannot_begin_to_share_once_a_metric_was_made(tmp_path: Path) -> None:
    """Their values would stay in memory, and be nobody's."""
    with pytest.raises(RuntimeError, match="made already"):
        serving.share(tmp_path, "gateway")


def test_prometheus_is_told_of_each_process_once_and_of_no_server() -> None:
    def row(role: str, member: str, port: int | None) -> ProcessRow:
        return ProcessRow(role=role, member=member, pid=1, port=port)

    ours = [row("gateway", "1", 80), row("gateway", "2", 80), row("relay", "1", 81), row("supervisor", "1", None)]
    stages = [row("order-stage", "1", 82), row("order-stage", "2", 83)]
    found = targets([*ours, *stages, row("redis", "1", 6379)])
    assert [(each["targets"], each["labels"]) for each in found] == [
        (["127.0.0.1:80"], {"role": "gateway", "member": "all"}),
        (["127.0.0.1:82"], {"role": "order-stage", "member": "1"}),
        (["127.0.0.1:83"], {"role": "order-stage", "member": "2"}),
        (["127.0.0.1:81"], {"role": "relay", "member": "1"}),
    ]
