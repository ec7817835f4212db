"""The demo's buyers against a scripted gateway, and what the demo counts as passed."""

import base64
import io
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import patch

import aiohttp
import msgspec
import pytest
import stamina
from aiohttp import web
from aiohttp.test_utils import TestServer
from rich.console import Console

from bench.demo import where
from bench.demo.people import _register_and_log_in
from bench.demo.sale import BUYERS, CLICKS_WITHIN_S, plan_of
from bench.demo.sale_tally import LoggedOrder, SaleTally, at, spread
from bench.demo.summary import Conditions, figures, passed, show
from bench.generator import Generator, users_of
from bench.plan import Share
from bench.run_card import Machine
from bench.tally import Followed, Tally
from consumers.audit.balance import AuditReport
from consumers.audit.show import page_of
from schemas.events import OrderStatusChanged
from schemas.ids import ProductId
from schemas.order_state import Status

ORDER = "01936f2e-7d1c-7a30-8000-0123456789ab"
BALANCED = page_of(AuditReport(ok=True, products=[], problems=[]))
Script = Callable[[str, int], tuple[int, dict[str, Any], dict[str, str]]]  # (key, nth request of it) -> an answer


def accept(_key: str, _nth: int, order: str = ORDER) -> tuple[int, dict[str, Any], dict[str, str]]:
    return 202, {"orderId": order}, {"Location": f"/api/order/{order}/status"}


class ScriptedGateway:
    def __init__(self, script: Script) -> None:
        self.script = script
        self.keys: defaultdict[str, int] = defaultdict(int)

    async def buy(self, request: web.Request) -> web.Response:
        key = request.headers["Idempotency-Key"]
        self.keys[key] += 1
        status, body, headers = self.script(key, self.keys[key])
        return web.json_response(body, status=status, headers=headers)

    async def status(self, _request: web.Request) -> web.Response:
        return web.json_response({"orderId": ORDER, "status": "confirmed"})


def token(user: int) -> str:
    return f"h.{base64.urlsafe_b64encode(json.dumps({'sub': str(user)}).encode()).decode().rstrip('=')}.s"


def a_status(status: Status, at_ms: int = 2_000, **times: Any) -> OrderStatusChanged:
    return OrderStatusChanged(
        order_id=ORDER, product_id=1, user_id=1, quantity=1, total_cents=999, currency="USD", status=status,
        placed_at_ms=1_000, at_ms=at_ms, **times,
    )  # fmt: skip


def ended() -> OrderStatusChanged:
    return a_status(Status.CONFIRMED, charge_started_at_ms=1_030, charge_answered_at_ms=1_960)


QUIET = Conditions(Machine(cpu="a CPU", cores=2, memory_gb=8.0, load_before=2.0), 0.01)


def shown(tally: SaleTally, conditions: Conditions = QUIET) -> str:
    console = Console(file=io.StringIO(), width=120)
    with console.capture() as captured:
        show(console, tally, BALANCED, conditions, "http://x")
    return captured.get()


@asynccontextmanager
async def gateway(script: Script) -> AsyncIterator[tuple[ScriptedGateway, Callable[..., Any]]]:
    """A scripted gateway, and a sale of so many buyers who all click within a tenth of a second."""
    scripted = ScriptedGateway(script)
    app = web.Application()
    app.router.add_post("/api/order/buy-flash", scripted.buy)
    app.router.add_get("/api/order/{id}/status", scripted.status)
    async with TestServer(app) as server:

        async def hold(buyers: int = 1, **plan: Any) -> SaleTally:
            usual = plan_of(str(server.make_url("")).rstrip("/"), ProductId(1), "")
            options: dict[str, Any] = {"rate": 10.0 * buyers, "seconds": 0.1, "peak_s": 0.05, "double_clicks": 0.0}
            everything = {**options, "patient": 0.0, "follow": 1.0, **plan}
            share = Share(plan=msgspec.structs.replace(usual, **everything), index=0, run="demo-1")
            generator = Generator(share, users_of([token(n) for n in range(1, buyers + 1)]), time.time())
            await generator.run()
            return SaleTally(buyers=buyers, clients=generator.tally)

        yield scripted, hold


async def test_a_double_click_is_two_requests_with_one_key_and_one_order() -> None:
    async with gateway(accept) as (scripted, hold):
        tally = await hold(double_clicks=1.0)
    assert list(scripted.keys.values()) == [2]
    assert tally.clients.double_clicks == 1
    assert tally.accepted == 1
    assert tally.doubled_orders == 0
    assert tally.clients.ends == {Status.CONFIRMED: 1}
    assert tally.unended == 1, "the log has not said so"
    tally.record(ended(), 5_000)
    assert tally.unended == 0
    assert passed(tally, BALANCED)


async def test_a_double_click_that_makes_two_orders_is_noticed() -> None:
    def two(_key: str, nth: int) -> tuple[int, dict[str, Any], dict[str, str]]:
        return accept(_key, nth, f"{ORDER[:-1]}{nth}")

    async with gateway(two) as (_, hold):
        tally = await hold(double_clicks=1.0)
    assert tally.doubled_orders == 1
    assert not passed(tally, BALANCED)


async def test_busy_is_tried_again_with_the_same_key_and_sold_out_is_not() -> None:
    def busy_once(key: str, nth: int) -> tuple[int, dict[str, Any], dict[str, str]]:
        if key.endswith("-1"):
            return 409, {"code": "sold_out"}, {}
        return (503, {"code": "busy"}, {"Retry-After": "0"}) if nth == 1 else accept(key, nth)

    async with gateway(busy_once) as (scripted, hold):
        tally = await hold(2)
    assert sorted(scripted.keys.items()) == [("demo-1-0-0", 2), ("demo-1-0-1", 1)]
    assert (tally.accepted, tally.without_unit) == (1, 1)
    assert tally.refused == {"busy": 1, "sold_out": 1}


async def test_an_answer_that_must_not_be_fails_the_demo() -> None:
    async with gateway(lambda _key, _nth: (500, {"code": None}, {})) as (_, hold):
        tally = await hold()
    assert {text.split(" {")[0] for text in tally.bad_answers} == {"an undocumented answer: 500", "500"}
    assert not passed(tally, BALANCED)
    assert "must not be: an undocumented answer: 500" in shown(tally)


async def test_an_answer_that_no_buyer_may_get_fails_the_demo() -> None:
    async with gateway(lambda _key, _nth: (401, {"code": "unauthorized"}, {})) as (_, hold):
        tally = await hold()
    assert tally.bad_answers == ["401 unauthorized"]
    assert not passed(tally, BALANCED)


async def test_a_patient_buyer_gets_a_unit_that_comes_back() -> None:
    def back_later(key: str, nth: int) -> tuple[int, dict[str, Any], dict[str, str]]:
        return accept(key, nth) if nth == 3 else (409, {"code": "sold_out"}, {})

    async with gateway(back_later) as (scripted, hold):
        with patch("bench.generator.PATIENT_INTERVAL_S", 0.02):
            tally = await hold(patient=1.0)
            assert (tally.accepted, list(scripted.keys.values())) == (1, [3])
            scripted.keys.clear()
            assert (await hold(patient=1.0, patient_until_s=0.0)).accepted == 0


def test_books_that_do_not_balance_fail_the_demo() -> None:
    assert passed(SaleTally(), BALANCED)
    assert not passed(SaleTally(), page_of(AuditReport(ok=False, products=[], problems=["product 1: oversold"])))


def test_the_figures_for_machines_are_those_for_people() -> None:
    clients = Tally(requests=4, orders=2, accepted_ms=[100.0, 200.0], first_s=3.96)
    tally = SaleTally(buyers=3, clients=clients)
    tally.record(ended(), 5_000)
    told = msgspec.json.decode(msgspec.json.encode(figures(tally, BALANCED, QUIET)))
    assert (told["ok"], told["unended"], told["took_s"]) == (False, 1, 1.0)
    assert told["ended"] == {"confirmed": 1, "failed": 0, "payment_failed": 0}
    assert told["delays_ms"]["click_to_202"]["p99"] == 200
    assert told["audit"] == {"ok": True, "products": [], "problems": []}
    assert told["machine"] == {"cpu": "a CPU", "cores": 2, "memory_gb": 8.0, "load_before": 2.0, "stolen": 0.01}
    assert told["quiet"]
    assert told["where_ms"]["orders"] == 0


@pytest.mark.parametrize(("load", "stolen", "quiet"), [(2.0, 0.0, True), (2.1, 0.0, False), (0.0, 0.03, False)])
def test_figures_of_a_machine_with_other_work_are_not_comparable(load: float, stolen: float, quiet: bool) -> None:
    """A machine of two cores is quiet up to a load of two."""
    conditions = Conditions(msgspec.structs.replace(QUIET.machine, load_before=load), stolen)
    assert conditions.quiet == quiet
    assert ("cannot be compared" not in shown(SaleTally(), conditions)) == quiet


ONE = Followed(ORDER, clicked_ms=1_000, accepted_ms=1_020, ended_ms=2_000)


def test_the_parts_of_an_order_add_up_to_its_whole_time() -> None:
    """It was stored 5 ms before its buyer had read the 202: the order stage has cost the buyer nothing."""
    tally = SaleTally(clients=Tally(followed=[ONE]))
    tally.record(a_status(Status.AWAITING_PAYMENT, at_ms=1_015), 1_016)
    tally.record(ended(), 1_990)
    parts = {key: values for key, values in where.times_ms(tally).items() if values}
    assert parts == {
        "reserve_and_publish": [20], "order_stage": [0], "payment_queue": [10], "charge": [930], "settle": [30], "projector": [10],
    }  # fmt: skip
    assert sum(value for [value] in parts.values()) == ONE.ended_ms - ONE.clicked_ms
    told = where.where_ms(tally)
    assert told["charge"] == {"p50": 930, "p95": 930}
    assert (told["orders"], told["latest_end_after_its_answer"], told["last_end_after_the_last_answer"]) == (1, 30, 30)
    assert "last end after the last charge's answer: 30 ms" in shown(tally)


def test_an_order_whose_moments_are_not_all_known_is_left_out() -> None:
    for log in ({}, {ORDER: LoggedOrder()}, {ORDER: LoggedOrder(stored_ms=1, ended_ms=2)}):
        assert not any(where.times_ms(SaleTally(clients=Tally(followed=[ONE]), log=log)).values())
    assert where.after_answer_ms([LoggedOrder(ended_ms=1)])["latest_end_after_its_answer"] is None


def test_the_last_end_and_the_latest_one_are_two_figures() -> None:
    orders = [LoggedOrder(answered_ms=1_000, ended_ms=1_500), LoggedOrder(answered_ms=2_000, ended_ms=2_010)]
    assert where.after_answer_ms(orders) == {"latest_end_after_its_answer": 500, "last_end_after_the_last_answer": 10}


def test_a_repeated_record_of_an_end_changes_nothing() -> None:
    tally = SaleTally(clients=Tally(orders=1))
    tally.record(ended(), 1_990)
    tally.record(ended(), 3_000)
    tally.record(a_status(Status.NEEDS_RECONCILIATION), 3_001)
    assert tally.log[ORDER].ended_ms == 1_990
    assert tally.own_delay_ms == [1_990 - 1_000 - 930]
    assert tally.with_status(Status.CONFIRMED) == 1


async def test_who_is_told_to_come_back_later_registers_then() -> None:
    """A busy machine hashes passwords slowly: 503 for them is not the end of the demo, and 409 means it was done."""
    answers = iter([503, 504, 409, 503, 409, 200])

    async def answer(request: web.Request) -> web.Response:
        status = next(answers)
        return web.json_response({"token": f"after {request.path}"}, status=status)

    app = web.Application()
    app.router.add_post("/api/auth/{what}", answer)
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        with stamina.set_testing(True, attempts=10, cap=False):
            token = await _register_and_log_in(session, str(server.make_url("")).rstrip("/"), "Arya Stark")
    assert token == "after /api/auth/login"
    assert next(answers, None) is None


async def test_everybody_comes_once_within_seconds_and_most_of_them_soon() -> None:
    plan = plan_of("http://127.0.0.1:1", ProductId(7), "")
    generator = Generator(Share(plan=plan, index=0, run="r"), users_of([token(1)]), time.time())
    arrivals = list(generator._arrivals(0.0))
    assert len(arrivals) == BUYERS
    assert all(0 <= at_s <= CLICKS_WITHIN_S for at_s in arrivals)
    assert sum(at_s < CLICKS_WITHIN_S / 2 for at_s in arrivals) > 0.6 * BUYERS


def test_percentiles_are_nearest_rank() -> None:
    assert at([]) == {50: None, 95: None, 99: None}
    assert at([3.0, 1.0, 2.0])[50] == 2.0
    assert at([1.0])[99] == 1.0
    assert spread([1.0, 2.0]) == "p50 1 ms   p95 2 ms   p99 2 ms"
