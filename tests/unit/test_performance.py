"""What `make bench` decides and writes, without measuring: verdicts, the search for a rate, delays, pages, CPU of processes."""

import asyncio
import json
import os
import subprocess
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench import buyers
from bench.order_ends import own_delay_ms
from bench.performance import cpu, quota
from bench.performance.__main__ import FOLDER, JSON, SizeName
from bench.performance.figures import GOALS, Figure, shown, verdict
from bench.performance.ladder import Tried, best, next_rate
from bench.performance.limits import LIMITS, empty_gateway, limit_of, orders_per_s
from bench.performance.members import linearity
from bench.performance.overload import bad_answers, recovery_s
from bench.performance.page import details, summary, tables
from bench.performance.plots import draw
from bench.performance.report import (
    BacklogPoint,
    BooksNote,
    CpuTable,
    GeneratorNote,
    MembersPoint,
    Report,
    Sample,
    read,
    write,
)
from bench.performance.run import NAMES, wanted
from bench.performance.size import BENCH, FULL, QUICK, SIZES
from bench.performance.stack import Counts
from bench.performance.stock_stream import delays_ms
from bench.performance.stream_clients import READ_INTERVAL_S, READY, Seen, Watch
from bench.performance.sustained import is_sustained
from bench.performance.table import BEGIN, END, put_generated
from bench.plan import Plan
from bench.tally import Percentiles, Result, Tally, summarise
from infra.supervision import registry
from schemas.events import OrderStatusChanged
from schemas.order_state import Status

ROOT = Path(__file__).parent.parent.parent


def full_report() -> Report:
    """Something of everything."""
    spread = Percentiles(100, 1.0, 2.0, 3.0, 4.0)
    costs = {"gateway": 0.3, "order-stage": 0.2, "payment-stage": 0.5, "projector": 0.1, "kafka": 0.2, "redis": 0.1}
    return Report(
        size="bench",
        seconds=60.0,
        figures={key: Figure([goal.bound, goal.bound, goal.bound]) for key, goal in GOALS.items()},
        latencies={"acknowledgement at 500/s": spread, "stock change to client, 10,000 clients": spread},
        cpu={"full load 1": CpuTable(30.0, 1_000, 990, {**costs, "postgres": 0.1, "payment-gateway": 0.3})},
        notes={"burst 1: drained/s": 700.0},
        members=[MembersPoint("order-stage", members, 0.05, [250.0 * members]) for members in (1, 2, 4)],
        backlogs=[BacklogPoint(orders, 700.0, costs, 12.0) for orders in (10_000, 100_000)],
        limits=dict.fromkeys(LIMITS, 12_000.0),
        burst=[Sample(float(second), 1_000 * second, 500 * second) for second in range(5)],
        generators=[GeneratorNote("burst 1", 3_000, 2_990, 0.1, 0.4, 1, {"202": 45_000})],
        books=[BooksNote("burst 1", 45_000, True, [])],
    )


@pytest.mark.parametrize("key", GOALS)
def test_a_goal_is_met_at_its_bound_and_missed_beyond_it(key: str) -> None:
    goal = GOALS[key]
    worse = goal.bound - 0.1 if goal.at_least else goal.bound + 0.1
    assert verdict(key, {key: Figure([goal.bound])}) == "met"
    assert verdict(key, {key: Figure([worse])}) == "missed"
    assert verdict(key, {}) == "not measured"


def test_one_bad_run_of_five_does_not_decide_but_is_shown() -> None:
    figure = Figure([5_100, 5_050, 900, 5_200, 5_150])
    assert figure.median == 5_100
    assert verdict("burst_accepted", {"burst_accepted": figure}) == "met"
    assert "| 5,100 | - | 900 to 5,200 (5) | met |" in tables(Report(size="bench", figures={"burst_accepted": figure}))


def test_a_figure_with_a_natural_limit_shows_its_share_of_it() -> None:
    """The burst against empty answers; sustained orders against the part that carries the fewest of them."""
    limits = {"answers": 6_000.0, "reservations": 20_000.0, "produced": 60_000.0, "rows": 6_000.0, "fsyncs": 100.0}
    assert limit_of("burst_accepted", limits) == 6_000
    assert limit_of("sustained", limits) == orders_per_s("rows", 6_000.0) == 3_000
    assert limit_of("own_p50", limits) is None
    assert limit_of("sustained", {}) is None
    figures = {"burst_accepted": Figure([5_100]), "sustained": Figure([2_400]), "own_p50": Figure([11])}
    text = tables(Report(size="bench", figures=figures, limits=limits))
    for row in ("| 5,100 | 85% | - | met |", "| 2,400 | 80% | - | met |", "| 11 | - | - | met |"):
        assert row in text
    assert f"| {LIMITS['rows'].what} | 6,000 | 2 | 3,000 |" in text


async def test_the_empty_gateway_answers_what_the_load_client_accepts(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.json"
    tokens.write_text(json.dumps(["h.eyJzdWIiOiIxIn0.s"]))
    async with empty_gateway(2) as url:
        result = await buyers.run(Plan(base_url=url, tokens=str(tokens), mode="closed", connections=4, seconds=0.3))
    assert result.answers.keys() == {"202"}
    assert not result.bad_answers


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (0.254, "0.25"), (3, "3"), (11.4, "11"), (3_123.4, "3,123")])
def test_values_are_shown_to_the_digits_that_mean_something(value: float, text: str) -> None:
    assert shown(value) == text


def test_the_search_closes_in_on_the_highest_rate_that_is_sustained() -> None:
    limit, rate = 1_130.0, 500.0
    tried: list[Tried] = []
    while rate is not None and len(tried) < 20:
        tried.append(Tried(rate, rate <= limit))
        rate = next_rate(tried)  # type: ignore[assignment]  # None ends the loop
    found = best(tried)
    assert found is not None
    assert limit / 1.06 < found <= limit
    assert len(tried) < 12


def test_a_rate_above_one_that_failed_is_luck() -> None:
    assert best([Tried(900, True), Tried(1_000, False), Tried(1_100, True)]) == 900
    assert best([Tried(900, False)]) is None


def result(*, arrivals: int, accepted: int) -> Result:
    refused = [1.0] * (arrivals - accepted)
    return summarise(
        "open",
        [
            Tally(
                arrivals=arrivals,
                accepted_ms=[1.0] * accepted,
                refused_ms=refused,
                outcomes={"A": accepted},
                first_s=0.0,
                last_s=1.0,
            )
        ],
    )


def test_a_rate_is_sustained_when_all_is_accepted_and_only_charges_are_under_way() -> None:
    all_of_them = result(arrivals=6_000, accepted=6_000)
    before = Counts(300, 0, 0)
    assert is_sustained(before, Counts(6_300, 6_100, 6_000), 100.0, all_of_them)
    assert not is_sustained(before, Counts(6_300, 5_000, 4_900), 100.0, all_of_them)
    short = result(arrivals=600, accepted=600)
    assert not is_sustained(
        before, Counts(900, 550, 540), 200.0, short
    )  # three seconds' worth hide that a tenth is left
    assert not is_sustained(before, Counts(6_300, 6_100, 6_000), 100.0, result(arrivals=6_000, accepted=5_500))


def end(**times: Any) -> OrderStatusChanged:
    return OrderStatusChanged(
        order_id="01900000-0000-7000-8000-000000000000",
        product_id=1,
        user_id=1,
        quantity=1,
        total_cents=999,
        currency="USD",
        status=Status.CONFIRMED,
        placed_at_ms=1_000,
        at_ms=2_000,
        **times,
    )


def test_own_delay_is_what_the_charge_did_not_take() -> None:
    assert own_delay_ms(end(charge_started_at_ms=1_015, charge_answered_at_ms=1_915), 1_940) == 40
    assert own_delay_ms(end(), 1_940) is None


def test_a_watcher_is_late_by_the_oldest_change_it_was_not_told() -> None:
    """Told version 10, then 13: it waited since 11, however new 13 was."""
    changed = {10: 0.90, 11: 1.00, 12: 1.03, 13: 1.05}
    assert list(delays_ms(changed, [(10, 0.95), (13, 1.06)])) == [pytest.approx(60.0)]
    assert list(delays_ms(changed, [(10, 0.95), (10, 1.0)])) == []


@pytest.mark.parametrize("measured", [True, False], ids=["measured", "crowd"])
async def test_watchers_tell_what_came_to_them_and_how_many_were_cut_off(measured: bool) -> None:
    """Three clients, of whom the server drops one after its first value."""
    served: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        served.append(writer)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nid: 1.7\ndata: {}\n\n")

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench.performance.stream_clients"), cwd=ROOT, stdin=PIPE, stdout=PIPE
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(msgspec.json.encode(Watch(port, 1, 3, measured)) + b"\n")
        assert await process.stdout.readline() == READY
        for writer in served[1:]:
            writer.write(b"id: 1.9\ndata: {}\n\n")
        served[0].close()
        # The crowd looks once a second; a second look has seen all that was sent before it.
        await asyncio.sleep(0.2 if measured else 2 * READ_INTERVAL_S)
        out, _ = await process.communicate(b"\n")
        for writer in served:
            writer.transport.abort()
    seen = msgspec.json.decode(out, type=Seen)
    assert seen.lost == 1
    if measured:
        assert sorted([version for version, _ in values] for values in seen.values) == [[7], [7, 9], [7, 9]]


def test_a_machine_without_control_groups_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(quota, "ROOT", tmp_path)
    with pytest.raises(quota.NoQuota, match="no CPU controller"), quota.limited([[os.getpid()]], 0.1):
        pass


def test_answers_that_nobody_should_see_under_overload_are_counted() -> None:
    assert bad_answers({"202": 5, "503 busy": 7, "409 sold_out": 9, "429 rate_limited": 1}) == 0
    assert bad_answers({"0 reset": 1, "0 timeout": 2, "0 unreachable": 4, "500": 8, "504 outcome_unknown": 16}) == 31


def test_all_is_well_after_the_last_half_second_in_which_it_was_not() -> None:
    def answers(slow_until_ms: int) -> list[tuple[int, float]]:
        return [(10_000 + at, 900.0 if at < slow_until_ms else 3.0) for at in range(600, 8_000, 5)]

    assert recovery_s(10_000, answers(0)) == 0.0
    assert recovery_s(10_000, answers(1_400)) == 1.5
    with pytest.raises(ValueError):
        recovery_s(10_000, [])


def test_the_least_linear_stage_shows() -> None:
    points = [MembersPoint("a", 1, 0.1, [100, 20, 110]), MembersPoint("a", 4, 0.1, [400])]
    points += [MembersPoint("b", 1, 0.1, [100]), MembersPoint("b", 4, 0.1, [300])]
    assert linearity(points) == {"a": 1.0, "b": 0.75}


def test_cpu_counts_children_that_have_ended_and_is_summed_without_what_stands_apart(tmp_path: Path) -> None:
    """A parent whose child has burnt a fifth of a second and gone, as Postgres' backends go."""
    burn = "import time\nwhile time.process_time() < 0.2: pass"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}]); print('done', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        registry.register("postgres", pid=process.pid, state_dir=tmp_path)
        registry.register("supervisor", pid=process.pid, state_dir=tmp_path)
        used = cpu.read(tmp_path)
        process.communicate()
    assert used["postgres"] >= 0.2
    assert used["supervisor"] < used["postgres"] - 0.15, "a supervisor's children are other rows' own"
    assert cpu.per_order_ms(cpu.between({"redis": 1.0}, {"redis": 3.0}), 1_000) == {"redis": 2.0}
    assert cpu.system_sum({"redis": 2.0, "gateway": 1.0, "payment-gateway": 9.0}) == 3.0


def test_a_report_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    write(full_report(), tmp_path / "new" / JSON)
    assert read(tmp_path / "new" / JSON) == full_report()


def test_the_page_has_a_row_for_every_goal_measured_or_not() -> None:
    for report in (full_report(), Report(size="quick")):
        text = tables(report)
        assert all(f"| {goal.what} |" in text for goal in GOALS.values())


def test_what_was_missed_or_failed_or_does_not_balance_is_said_loudly() -> None:
    report = full_report()
    report.figures["sustained"] = Figure([10.0])
    report.failures.append("members: no quota")
    report.books.append(BooksNote("burst 2", 3, False, ["one is lost"]))
    text = tables(report)
    for words in ("**missed**", "NOT MEASURED: members: no quota", "DO NOT BALANCE: burst 2: one is lost"):
        assert words in text
    assert not report.sound


def test_only_what_stands_between_the_marks_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    put_generated(page, "new")
    put_generated(page, "newer")
    assert page.read_text() == f"before\n{BEGIN}\n\nnewer\n\n{END}\nafter\n"
    page.write_text("no marks")
    with pytest.raises(ValueError):
        put_generated(page, "new")


def test_the_plots_are_small_and_need_not_have_everything(tmp_path: Path) -> None:
    for name, report in (("all", full_report()), ("nothing", Report(size="quick"))):
        draw(report, tmp_path / name)
        files = list((tmp_path / name).glob("*.png"))
        assert len(files) == 3
        assert all(file.stat().st_size < 80_000 for file in files)


def test_the_pages_show_the_figures_that_lie_beside_them() -> None:
    report = read(FOLDER / JSON)
    assert summary(report) in (ROOT / "docs" / "performance.md").read_text()
    assert details(report) in (ROOT / "docs" / "performance-details.md").read_text()


def test_every_size_measures_what_it_has_times_for() -> None:
    assert {name.value for name in SizeName} == SIZES.keys()
    assert wanted(QUICK, frozenset()) == set(NAMES) - {"members", "backlog", "profiles"}
    assert wanted(BENCH, frozenset()) == set(NAMES) - {"profiles"}
    assert wanted(FULL, frozenset()) == set(NAMES)
    assert wanted(FULL, frozenset({"burst"})) == {"burst"}
