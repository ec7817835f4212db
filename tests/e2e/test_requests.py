"""What an order costs its buyer in requests, counted by the client: the buy, and one that brings the end."""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from types import SimpleNamespace

import aiohttp

from .stack import GOOD_WEATHER, Stack

ORDERS = 20
TERMINAL = {"confirmed", "payment_failed"}
Follow = Callable[[aiohttp.ClientSession, str, dict[str, str]], Awaitable[str]]


async def by_waiting(session: aiohttp.ClientSession, order: str, bearer: dict[str, str]) -> str:
    async with session.get(f"/api/order/{order}/status?wait=25", headers=bearer) as answer:
        return str((await answer.json())["status"])


async def by_stream(session: aiohttp.ClientSession, order: str, bearer: dict[str, str]) -> str:
    """The last state that the one stream brings before the server ends it."""
    async with session.get(f"/sse/order/{order}", headers=bearer) as answer:
        data = [line[6:] async for line in answer.content if line.startswith(b"data: ")]
    return str(json.loads(data[-1])["status"])


async def by_polling(session: aiohttp.ClientSession, order: str, bearer: dict[str, str]) -> str:
    """As the reference's clients do it, only twice as often."""
    while True:
        async with session.get(f"/api/order/{order}/status", headers=bearer) as answer:
            status = str((await answer.json())["status"])
        if status in TERMINAL:
            return status
        await asyncio.sleep(0.5)


def test_an_orders_end_costs_two_requests_by_waiting_or_by_stream_and_more_by_polling(stack: Stack) -> None:
    """Every request that leaves the client is counted, retries and redirects too; polling is the control."""
    stack.set_weather({**GOOD_WEATHER, "median_ms": 1_000, "sigma": 0.1})
    product, tokens, url = stack.new_product(1_000), json.loads(stack.tokens.read_text()), stack.url

    def requests_by(follow: Follow) -> int:
        return asyncio.run(requests_of(url, tokens, product, follow))

    assert requests_by(by_waiting) == 2 * ORDERS
    assert requests_by(by_stream) == 2 * ORDERS
    assert requests_by(by_polling) > 3 * ORDERS


async def requests_of(url: str, tokens: list[str], product: int, follow: Follow) -> int:
    """How many requests ORDERS buyers needed until each has seen its order confirmed."""
    sent: Counter[str] = Counter()
    trace = aiohttp.TraceConfig()

    async def count(
        _: aiohttp.ClientSession, __: SimpleNamespace, request: aiohttp.TraceRequestHeadersSentParams
    ) -> None:
        sent[request.method] += 1

    trace.on_request_headers_sent.append(count)

    async def buy_and_follow(token: str) -> str:
        bearer = {"Authorization": f"Bearer {token}"}
        async with session.post("/api/order/buy-flash", json={"productId": product}, headers=bearer) as answer:
            assert answer.status == 202
            order = (await answer.json())["orderId"]
        return await follow(session, order, bearer)

    async with aiohttp.ClientSession(url, trace_configs=[trace]) as session:
        ends = await asyncio.gather(*map(buy_and_follow, tokens[:ORDERS]))
    assert set(ends) == {"confirmed"}
    assert sent["POST"] == ORDERS
    return sent.total()
