"""Counts the requests of a client per order with pushed status: the purchase, and the order's stream."""

import asyncio

import aiohttp

from bench.own_stack import read_tokens

from .report import Report
from .size import Size
from .stack import MeasuredSale, Stack

AT_ONCE = 20
STREAM_TIMEOUT_S = 60.0
ENDS = ("confirmed", "payment_failed", "failed")


async def measure(stack: Stack, report: Report, size: Size) -> None:
    stack.weather(**size.weather)
    sale = stack.sale(report, "pushed status")
    tokens, slots = read_tokens(stack.tokens), asyncio.Semaphore(AT_ONCE)
    timeout = aiohttp.ClientTimeout(total=STREAM_TIMEOUT_S)
    async with aiohttp.ClientSession(stack.url, timeout=timeout) as session:
        follow = [_order(session, sale, tokens[number], slots) for number in range(size.followed)]
        requests = await asyncio.gather(*follow)
    report.add("requests_per_order", sum(requests) / len(requests))
    await sale.check_books()


async def _order(session: aiohttp.ClientSession, sale: MeasuredSale, token: str, slots: asyncio.Semaphore) -> int:
    """Buy once and watch the order to its end. Returns the number of requests."""
    headers = {"Authorization": f"Bearer {token}"}
    async with slots:
        async with session.post("/api/order/buy-flash", json={"productId": sale.product}, headers=headers) as answer:
            order = (await answer.json())["orderId"]
        requests, seen = 1, ""
        while seen not in ENDS:
            requests += 1
            async with session.get(f"/sse/order/{order}", headers=headers) as stream:
                async for line in stream.content:
                    if line.startswith(b"data:"):
                        seen = next((end for end in ENDS if f'"{end}"'.encode() in line), seen)
        return requests
