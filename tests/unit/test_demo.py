"""The demo's buyers against a scripted gateway, and what the demo counts as passed."""

import random
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
import stamina
from aiohttp import web
from aiohttp.test_utils import TestServer

from consumers.audit.balance import AuditReport
from consumers.demo.buyers import Buyer, Crowd
from consumers.demo.people import CLICKS_WITHIN_S, _register_and_log_in, timetable
from consumers.demo.sale_tally import SaleTally, percentile, spread
from consumers.demo.summary import figures, passed, summary
from infra.keep_alive import KeepAliveClient
from schemas.order_state import Status

ORDER = "01936f2e-7d1c-7a30-8000-0123456789ab"
Script = Callable[[str, int], tuple[int, dict[str, Any], dict[str, str]]]  # (key, nth request of it) -> an answer


def accept(_key: str, _nth: int) -> tuple[int, dict[str, Any], dict[str, str]]:
    return 202, {"orderId": ORDER}, {}


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


@asynccontextmanager
async def gateway(script: Script) -> AsyncIterator[tuple[ScriptedGateway, Callable[[list[Buyer]], Any]]]:
    scripted = ScriptedGateway(script)
    app = web.Application()
    app.router.add_post("/api/order/buy-flash", scripted.buy)
    app.router.add_get("/api/order/{id}/status", scripted.status)
    async with TestServer(app) as server:
        client = KeepAliveClient(server.make_url("/"), connect_timeout_s=2, idle_s=8, body_max_bytes=1_000)

        async def hold(buyers: list[Buyer]) -> SaleTally:
            tally = SaleTally()
            await Crowd(client, 1, tally).buy(buyers)
            return tally

        yield scripted, hold
        client.close()


async def test_a_double_click_is_two_requests_with_one_key_and_one_order() -> None:
    async with gateway(accept) as (scripted, hold):
        tally = await hold([Buyer("t", "k", 0.0, double_click=True)])
    assert scripted.keys == {"k": 2}
    assert len(tally.accepted) == 1
    assert tally.doubled_orders == 0
    assert tally.ended(Status.CONFIRMED) == 1
    assert tally.unended == 0


async def test_a_double_click_that_makes_two_orders_is_noticed() -> None:
    def two(_key: str, nth: int) -> tuple[int, dict[str, Any], dict[str, str]]:
        return 202, {"orderId": f"{ORDER[:-1]}{nth}"}, {}

    async with gateway(two) as (_, hold):
        tally = await hold([Buyer("t", "k", 0.0, double_click=True)])
    assert tally.doubled_orders == 1
    assert not passed(tally, AuditReport(ok=True, products=[], problems=[]))


async def test_busy_is_tried_again_with_the_same_key_and_sold_out_is_not() -> None:
    def busy_once(key: str, nth: int) -> tuple[int, dict[str, Any], dict[str, str]]:
        if key == "late":
            return 409, {"code": "sold_out"}, {}
        return (503, {"code": "busy"}, {"Retry-After": "0"}) if nth == 1 else accept(key, nth)

    async with gateway(busy_once) as (scripted, hold):
        tally = await hold([Buyer("t", "k", 0.0), Buyer("t", "late", 0.0)])
    assert scripted.keys == {"k": 2, "late": 1}
    assert (len(tally.accepted), tally.sold_out_buyers) == (1, 1)
    assert tally.refused == {"busy": 1, "sold_out": 1}


async def test_an_answer_that_must_not_be_fails_the_demo() -> None:
    async with gateway(lambda _key, _nth: (500, {"code": None}, {})) as (_, hold):
        tally = await hold([Buyer("t", "k", 0.0)])
    assert tally.bad_answers == ["500 None"]
    report = AuditReport(ok=True, products=[], problems=[])
    assert not passed(tally, report)
    assert "must not be: 500" in summary(tally, report, 1.0, "http://x")


def test_books_that_do_not_balance_fail_the_demo() -> None:
    assert passed(SaleTally(), AuditReport(ok=True, products=[], problems=[]))
    assert not passed(SaleTally(), AuditReport(ok=False, products=[], problems=["product 1: oversold"]))


def test_the_figures_for_machines_are_those_for_people() -> None:
    tally = SaleTally(buyers=3, clicks=4, accepted={"a", "b"}, acknowledged_s=[0.1, 0.2])
    tally.statuses = {"a": Status.CONFIRMED, "b": Status.QUEUED}
    told = msgspec.json.decode(
        msgspec.json.encode(figures(tally, AuditReport(ok=True, products=[], problems=[]), 1.04))
    )
    assert (told["ok"], told["unended"], told["took_s"]) == (False, 1, 1.0)
    assert told["ended"] == {"confirmed": 1, "failed": 0, "payment_failed": 0}
    assert told["delays_ms"]["click_to_202"]["p99"] == 200
    assert told["audit"] == {"ok": True, "products": [], "problems": []}


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


def test_the_timetable_has_everybody_once_within_seconds() -> None:
    random.seed(1)
    buyers = timetable([f"token {n}" for n in range(3_000)], 7)
    assert len({buyer.key for buyer in buyers}) == 3_000
    assert all(0 <= buyer.clicks_at_s <= CLICKS_WITHIN_S for buyer in buyers)
    assert 450 < sum(buyer.double_click for buyer in buyers) < 750


def test_percentiles_are_nearest_rank() -> None:
    assert percentile([], 50) is None
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0
    assert percentile([1.0], 99) == 1.0
    assert spread([0.001, 0.002]) == "p50 2 ms   p95 2 ms   p99 2 ms"
