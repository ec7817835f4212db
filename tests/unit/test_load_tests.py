"""Load tests decide nothing by chance: shapes say how many users when, criteria say met or not, exit codes follow."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.criteria import judge
from bench.load import GeneratorLoad, LoadReport, ShapeName, exit_code
from bench.own_stack import claims, read_tokens
from bench.run_card import RunCard
from bench.sale_result import SaleResult, Spread
from bench.sale_text import lines
from bench.shapes import REFERENCE, SHAPES, SPIKE, STEP, LoadStage, Shape

BALANCED: dict[str, Any] = {
    "product_id": 7,
    "initial": 100,
    "postgres": {"confirmed": {"orders": 90, "units": 90}, "payment_failed": {"orders": 10, "units": 10}},
    "charges": {"captured": 90, "double": 0},
    "oversold": 0,
}


def result(*, accepted: int = 100, confirmed: int = 90, p95_ms: float = 2_000, errors: int = 0) -> SaleResult:
    return SaleResult(
        shape="reference",
        follow="wait",
        think_s=0.3,
        seconds=60.0,
        users_planned=150.0,
        users_running=149.0,
        users_peak=300,
        sale={
            "successful_purchases": Spread(accepted),
            "fully_confirmed_orders": Spread(confirmed),
            "total_order_time": Spread(confirmed, p95_ms=p95_ms),
            "server_errors": Spread(errors),
            "out_of_stock_409": Spread(500, p50_ms=3.0),
            "generator_late": Spread(12_000),
        },
        requests={},
        failures={},
    )


def verdicts(seen: SaleResult, books: dict[str, Any] | None = BALANCED) -> list[bool | None]:
    return [criterion.met for criterion in judge(seen, books)]


@pytest.mark.parametrize(("at_s", "users"), [(0, 0), (15, 25), (30, 50), (90, 150), (210, 300), (270, 100), (285, 50)])
def test_the_reference_shape_is_the_references(at_s: float, users: int) -> None:
    assert REFERENCE.seconds == 300
    assert REFERENCE.users_at(at_s) == users


@pytest.mark.parametrize("shape", SHAPES.values(), ids=lambda shape: shape.name)
def test_every_shape_begins_and_ends_and_scaled_is_itself_in_less_time_with_fewer_users(shape: Shape) -> None:
    small = shape.scaled(0.1, 0.1)
    for part in (0.0, 0.3, 0.5, 0.9):
        wanted, scaled = shape.users_at(part * shape.seconds), small.users_at(part * small.seconds)
        assert wanted is not None
        assert scaled is not None
        assert scaled == pytest.approx(wanted / 10, abs=1)
    assert shape.users_at(shape.seconds) is None
    assert small.users_at(small.seconds) is None
    assert small.seconds == pytest.approx(shape.seconds / 10)


def test_steps_are_at_once_and_a_spike_is_one() -> None:
    assert [STEP.users_at(at_s) for at_s in (0, 39, 40, 239)] == [50, 50, 100, 300]
    assert [SPIKE.users_at(at_s) for at_s in (59, 62, 91, 98)] == [20, 400, 400, 20]


def test_nobody_is_scaled_away() -> None:
    assert Shape("few", "", (LoadStage(0, 3), LoadStage(10, 3)), 1).scaled(1, 0.01).users_at(5) == 1


def test_the_commands_names_are_the_shapes() -> None:
    assert {name.value for name in ShapeName} == SHAPES.keys()


def test_a_good_run_meets_all_four_criteria() -> None:
    assert verdicts(result()) == [True, True, True, True]


def test_each_criterion_that_is_not_met_says_so_alone() -> None:
    """At the reference's limits, not beyond them."""
    assert verdicts(result(confirmed=85)) == [False, True, True, True]
    assert verdicts(result(p95_ms=15_000)) == [True, False, True, True]
    assert verdicts(result(errors=100)) == [True, True, False, True]


@pytest.mark.parametrize(
    "wrong",
    [
        {"oversold": 1},
        {"postgres": {"confirmed": {"orders": 101, "units": 101}}},
        {"charges": {"captured": 101, "double": 0}},
    ],
    ids=["said", "confirmed", "charged"],
)
def test_more_than_the_stock_is_overselling_wherever_it_shows(wrong: dict[str, Any]) -> None:
    assert verdicts(result(), BALANCED | wrong) == [True, True, True, False]


def test_where_there_is_nothing_to_judge_by_nothing_is_met() -> None:
    nothing = msgspec.structs.replace(result(), sale={})
    assert verdicts(nothing, None) == [None, None, True, None]


def test_an_order_whose_end_nobody_saw_counts_against_the_success_rate() -> None:
    assert result(accepted=200, confirmed=90).order_success_rate == 0.45


def test_sold_out_is_counted_and_timed_apart_from_accepted() -> None:
    text = "\n".join(lines(result()))
    assert "out_of_stock_409                500" in text
    assert "answered 409 after" in text


def test_offered_is_what_users_would_click_if_every_answer_came_at_once() -> None:
    assert (result().offered_per_s, result().achieved_per_s) == (500.0, 200.0)


def test_an_orders_requests_are_its_accepted_click_and_what_followed_it() -> None:
    """Looking at the product, and clicks that were refused, belong to no order."""
    waited, polled = Spread(100), Spread(1_300)
    others = {"GET /api/products/[id]": Spread(700), "POST /api/order/buy-flash (409 sold_out)": Spread(500)}
    seen = msgspec.structs.replace(result(), requests={"GET /api/order/[id]/status?wait=": waited, **others})
    assert seen.requests_per_order == 2.0
    assert any(line.split() == ["requests_per_order", "2.00"] for line in lines(seen))
    seen = msgspec.structs.replace(result(), requests={"GET /api/order/[id]/status": polled, **others})
    assert seen.requests_per_order == 14.0
    assert msgspec.structs.replace(result(), sale={}).requests_per_order is None


def report(*, balance: bool, seen: SaleResult) -> LoadReport:
    card = RunCard(
        at="", cpu="", cores=2, memory_gb=1.0, load_before=0.0, system="", python="", commit=None, uncommitted=False,
        versions={}, processes={}, settings={}, weather=None,
    )  # fmt: skip
    return LoadReport(
        card=card, shape="spike", time_scale=1, crowd=1, product=7, stock=100, offered_per_s=1, achieved_per_s=1,
        generator=GeneratorLoad(processes=1, cpu_s=1, cpu_share=0.1, late_p99_ms=1), result=seen, books=BALANCED,
        books_balance=balance, problems=[], criteria=judge(seen, BALANCED),
    )  # fmt: skip


def test_books_that_do_not_balance_fail_the_command_whatever_the_criteria_say() -> None:
    assert exit_code(report(balance=False, seen=result()), strict=False) == 1
    assert exit_code(report(balance=False, seen=result(errors=100)), strict=True) == 1


def test_a_criterion_not_met_fails_the_command_only_where_asked() -> None:
    assert exit_code(report(balance=True, seen=result()), strict=True) == 0
    assert exit_code(report(balance=True, seen=result(errors=100)), strict=False) == 0
    assert exit_code(report(balance=True, seen=result(errors=100)), strict=True) == 3


def test_a_file_of_something_else_is_no_file_of_tokens(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    for text in ("{}", "[]", "token"):
        file.write_text(text)
        with pytest.raises(ValueError):
            read_tokens(file)
    with pytest.raises(ValueError):
        claims("no.token")


def test_the_page_lists_exactly_the_shapes_there_are_with_their_stock() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "load-testing.md").read_text()
    rows = re.findall(r"^\| `([\w-]+)` \|.*\| ([\d,]+) \|$", page, re.M)
    assert {name: int(stock.replace(",", "")) for name, stock in rows} == {
        shape.name: shape.stock for shape in SHAPES.values()
    }
