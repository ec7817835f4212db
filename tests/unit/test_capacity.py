"""The capacity model's arithmetic, and the simulation that checks it, on machines small enough to reckon by hand."""

import math
from pathlib import Path

import pytest

from bench.capacity import BUSY, awake_ms_per_s, checks, full_load, need, stations, tables
from bench.performance.__main__ import FOLDER, JSON
from bench.performance.report import CpuTable, Report, read
from bench.queueing import Station, flows, simulate

COSTS = {
    "gateway": 0.3,
    "order-stage": 0.2,
    "payment-stage": 0.6,
    "projector": 0.1,
    "relay": 0.06,
    "kafka": 0.24,
    "redis": 0.12,
    "postgres": 0.18,
    "payment-gateway": 0.3,
}
ROOT = Path(__file__).parent.parent.parent


def test_a_core_busy_for_six_tenths_does_six_tenths() -> None:
    """10,000 orders/s x 0.3 ms = 3 cores, 5 when each is 60% busy."""
    found = need(COSTS, 10_000)
    assert BUSY == 0.6
    assert (found.gateway_workers, found.order_members, found.payment_members, found.projectors) == (5, 4, 10, 2)
    assert (found.redis_shards, found.postgres_cores, found.postgres_primaries) == (2, 3, 1)
    assert (found.partitions, found.brokers, found.relay_cores) == (20, 3, 0.6)


def test_charges_in_flight_can_ask_for_more_members_than_their_cpu() -> None:
    """880 ms each on the average: 100,000/s are 88,000 at once, 22 members of 4,000."""
    assert need({**COSTS, "payment-stage": 0.001}, 100_000).payment_members == 23


def test_ten_times_the_orders_need_ten_times_the_cores_and_never_fewer_of_anything() -> None:
    small, large = need(COSTS, 100_000), need(COSTS, 1_000_000)
    assert large.cores / small.cores == pytest.approx(10, rel=0.02)
    for field in ("gateway_workers", "order_members", "payment_members", "partitions", "brokers", "redis_shards"):
        assert getattr(large, field) >= getattr(small, field)
    assert need(COSTS, 1).partitions == 6


def test_a_station_that_has_its_core_to_itself_is_as_fast_as_its_cost() -> None:
    alone = [Station("a", 1, 2.0), Station("b", 1, 1.0)]
    assert flows(alone, [math.inf, 100.0], cores=8) == [500.0, 100.0]
    assert flows([Station("a", 4, 2.0)], [math.inf], cores=8) == [2_000.0]


def test_where_cores_lack_every_process_gets_the_same() -> None:
    """Two always busy processes on one core: half each, whatever an order costs them."""
    shared = flows([Station("a", 1, 1.0), Station("b", 1, 4.0)], [math.inf, math.inf], cores=1)
    assert shared == [pytest.approx(500, rel=0.01), pytest.approx(125, rel=0.01)]


def test_what_is_made_to_work_beside_counts_for_the_machine_and_not_for_the_process() -> None:
    assert flows([Station("a", 1, 1.0, beside_ms=1.0)], [math.inf], cores=4) == [1_000.0]
    assert flows([Station("a", 1, 1.0, beside_ms=1.0)], [math.inf], cores=1) == [pytest.approx(500, rel=0.01)]


def test_water_is_neither_lost_nor_made() -> None:
    chain = [Station("a", 2, 0.3), Station("b", 1, 1.0), Station("c", 1, 0.5)]
    passed = simulate(chain, cores=2, arriving_per_s=300.0, seconds=20.0)
    assert passed.accepted[-1] == pytest.approx(6_000, rel=0.01)
    assert passed.ended[-1] == pytest.approx(6_000, rel=0.02)
    drained = simulate(chain, cores=2, arriving_per_s=0.0, seconds=60.0, backlog=5_000.0)
    assert drained.ended[-1] == pytest.approx(5_000, rel=0.001)
    assert drained.accepted[-1] == 0


def test_the_chain_makes_the_servers_work_exactly_as_much_as_was_measured() -> None:
    """What is apart included, and nothing counted twice."""
    chain = stations({**COSTS, "generator": 0.1}, workers=2)
    assert sum(station.total_ms for station in chain) == pytest.approx(sum(COSTS.values()) + 0.1)


def test_the_cost_of_an_order_is_the_median_of_the_bursts() -> None:
    report = Report(size="bench")
    with pytest.raises(ValueError):
        full_load(report)
    for number, ms in enumerate((0.1, 0.3, 0.2)):
        report.cpu[f"full load {number}"] = CpuTable(1.0, 1, 1, {"redis": ms})
    assert full_load(report) == {"redis": 0.2}


def test_coming_round_costs_what_an_order_costs_more_where_few_come() -> None:
    """0.3 ms more at 500/s are 150 ms a second; what is cheaper there takes nothing off."""
    report = Report(size="bench")
    assert awake_ms_per_s(report, {}) == 0.0
    report.cpu["500/s"] = CpuTable(1.0, 1, 1, {"redis": 0.5, "kafka": 0.1})
    assert awake_ms_per_s(report, {"redis": 0.2, "kafka": 0.2}) == pytest.approx(150.0)


def test_the_page_is_the_models_answer_to_the_figures_that_lie_beside_it() -> None:
    report = read(FOLDER / JSON)
    assert tables(report) in (ROOT / "docs" / "capacity.md").read_text()
    assert checks(report), "a simulated machine stands beside the measured one"
