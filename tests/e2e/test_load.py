"""The load tests as a load tester runs them, small: a shape, its product and users, locust, the books and the criteria."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .stack import FOREIGN, GOOD_WEATHER, Stack

pytestmark = pytest.mark.timeout(200)
ROOT = Path(__file__).parent.parent.parent
DECLINING = {**GOOD_WEATHER, "declined": 0.6}
SUCCESS_RATE = "success rate of accepted orders"


def load(stack: Stack, folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit code and report of `python -m bench.load`."""
    kept = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    done = subprocess.run(
        [sys.executable, "-m", "bench.load", *arguments, "--users", "100", "--out", str(folder), "--json"],
        cwd=ROOT,
        env={**kept, "THRONES_STATE_DIR": str(stack.state_dir)},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.stdout.startswith("{"), done.stdout + done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert report == json.loads((folder / "result.json").read_text())
    return done.returncode, report


def counts(report: dict[str, Any]) -> dict[str, int]:
    return {metric: spread["count"] for metric, spread in report["result"]["sale"].items()}


def met(report: dict[str, Any]) -> dict[str, bool | None]:
    return {criterion["what"]: criterion["met"] for criterion in report["criteria"]}


def test_the_references_profile_meets_its_criteria_and_what_users_counted_is_what_the_books_hold(
    stack: Stack, tmp_path: Path
) -> None:
    """Orders are followed by their streams; "sold out" is a row of its own and no failure; all results are files."""
    stack.set_weather(GOOD_WEATHER)
    code, report = load(
        stack,
        tmp_path,
        "reference",
        "--scale",
        "0.03",
        "--crowd",
        "0.15",
        "--stock",
        "40",
        "--follow",
        "stream",
        "--strict",
    )
    assert (code, report["books_balance"], report["problems"]) == (0, True, [])
    assert list(met(report).values()) == [True] * 4
    sale, books = counts(report), report["books"]
    assert books["postgres"]["confirmed"] == {"orders": 40, "units": 40}
    assert sale["successful_purchases"] == sale["fully_confirmed_orders"] == 40
    assert sale["out_of_stock_409"] > 0
    assert sale["payment_processing_time"] > 0
    requests = {name: spread["count"] for name, spread in report["result"]["requests"].items()}
    assert requests["GET /sse/order/[id]"] == 40, "a buy and one stream an order"
    assert report["result"]["failures"] == {}
    assert report["card"]["processes"].get("gateway") == len(stack.rows("gateway")), stack.seen("gateway")
    with (tmp_path / "locust_stats.csv").open() as file:
        rows = {row["Name"]: row for row in csv.DictReader(file)}
    assert rows["/api/order/buy-flash (202 accepted)"]["Request Count"] == "40"
    assert rows["/api/order/buy-flash (409 sold_out)"]["Request Count"] == str(sale["out_of_stock_409"])
    assert rows["Aggregated"]["Failure Count"] == "0"
    assert "<html" in (tmp_path / "locust.html").read_text()


def test_a_sell_out_with_most_payments_declined_balances_and_does_not_meet_the_criteria(
    stack: Stack, tmp_path: Path
) -> None:
    """The control: the success rate says "not met", and --strict makes that the exit code; the books are right all the same."""
    stack.set_weather(DECLINING)
    code, report = load(stack, tmp_path, "sell-out", "--scale", "0.1", "--crowd", "0.1", "--stock", "40", "--strict")
    verdict = met(report)
    assert (code, report["books_balance"], report["problems"]) == (3, True, [])
    assert verdict.pop(SUCCESS_RATE) is False
    assert list(verdict.values()) == [True] * 3
    sale, books = counts(report), report["books"]
    assert sale["fully_confirmed_orders"] == books["postgres"]["confirmed"]["orders"] <= 40
    requests = {name: spread["count"] for name, spread in report["result"]["requests"].items()}
    assert requests["GET /api/order/[id]/status?wait="] == sale["successful_purchases"], "a buy and one wait an order"
    assert sale["declined_orders"] == books["postgres"]["payment_failed"]["orders"] > 0
