"""Clients who send headers and then nothing, by the hundred, beside buyers: every buyer is answered as if they were not there."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from gateway.buying.admission import Overload
from gateway.buying.purchases import Purchases
from gateway.http.problems import Problem
from gateway.http.slow_bodies import WAITING_A_USER
from infra.settings import SigningSettings
from tests.integration.gateway_fixtures import GatewayClient, gateway, gateway_on, settings

__all__ = ["gateway", "settings"]

SLOW = 405
BUYERS = 25
STANDING_S = 0.5  # longer than a queue may stand before it is shed


def _slow(gateway: GatewayClient, path: str = "/api/order/buy-flash") -> bytes:
    """Headers and one byte of a body that never comes."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Authorization: {gateway.bearer['Authorization']}\r\nContent-Length: 15\r\n\r\n{{".encode()


@asynccontextmanager
async def sockets(gateway: GatewayClient, requests: list[bytes]) -> AsyncIterator[list[asyncio.StreamReader]]:
    port = int(gateway.url.rpartition(":")[2])
    opened = []
    try:
        for request in requests:
            opened.append(await asyncio.open_connection("127.0.0.1", port))
            opened[-1][1].write(request)
        yield [reader for reader, _ in opened]
    finally:
        for _, writer in opened:
            writer.close()


async def _bought(gateway: GatewayClient, product: int) -> list[int]:
    """What each of the buyers is answered, half of them on connections whose bodies come late, one after another."""

    async def late() -> AsyncIterator[bytes]:
        await asyncio.sleep(0.02)
        yield b'{"productId":%d}' % product

    statuses = []
    for n in range(BUYERS):
        buyer = gateway.another_user()
        if n % 2:
            statuses.append((await buyer.buy({"productId": product})).status)
        else:
            headers = {"Content-Type": "application/json", **buyer.bearer}
            answer = await buyer.ask("POST", "/api/order/buy-flash", data=late(), headers=headers)
            statuses.append(answer.status)
    return statuses


async def test_one_account_with_hundreds_of_bodies_that_never_come_keeps_no_buyer_out(gateway: GatewayClient) -> None:
    product = await gateway.product(1_000)
    async with sockets(gateway, [_slow(gateway)] * SLOW):
        await asyncio.sleep(STANDING_S)
        assert await _bought(gateway, product) == [202] * BUYERS
    assert await gateway.available(product) == 1_000 - BUYERS


async def test_many_accounts_and_nobody_with_bodies_that_never_come_keep_no_buyer_out(gateway: GatewayClient) -> None:
    """Also where together they have more than may wait: whoever holds most, longest, gives way."""
    product = await gateway.product(1_000)
    attackers = [gateway.another_user() for _ in range(60)]
    slow = [_slow(attacker) for attacker in attackers for _ in range(WAITING_A_USER)]
    nobody = [_slow(gateway, path) for path in ("/api/auth/login", "/api/auth/register")] * 50
    async with sockets(gateway, slow + nobody):
        assert await _bought(gateway, product) == [202] * BUYERS
    assert await gateway.available(product) == 1_000 - BUYERS


async def test_whoever_waits_with_too_many_bodies_is_told_so_and_cut(gateway: GatewayClient) -> None:
    async with sockets(gateway, [_slow(gateway)] * (WAITING_A_USER + 3)) as readers, asyncio.timeout(5):
        for reader in readers[:3]:
            answer = await reader.read()  # to its end
            assert answer.startswith(b"HTTP/1.1 429 ")
            assert b"rate_limited" in answer
        assert await asyncio.wait({asyncio.ensure_future(readers[3].read(1))}, timeout=0.2) != (set(), set())


async def test_a_queue_that_counts_requests_before_their_bodies_have_come_keeps_every_buyer_out(
    settings: SigningSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of the two is what protects the sale: with the count first, the same crowd shuts it."""
    buy = Purchases.buy

    async def counted_first(self: Purchases, request: web.Request) -> web.Response:
        try:
            with self._under_way.hold():
                return await buy(self, request)
        except Overload:
            raise Problem("busy") from None

    monkeypatch.setattr(Purchases, "buy", counted_first)
    monkeypatch.setattr("gateway.http.slow_bodies.WAITING_A_USER", SLOW)
    async with gateway_on(settings) as gateway:
        product = await gateway.product(1_000)
        async with sockets(gateway, [_slow(gateway)] * SLOW):
            await asyncio.sleep(STANDING_S)
            assert await _bought(gateway, product) == [503] * BUYERS


async def test_connections_of_one_address_on_which_nothing_comes_keep_no_other_out(
    settings: SigningSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full worker lets go of the oldest of the address that has most; who comes with one more himself is not let in."""
    monkeypatch.setattr("gateway.http.server.CONNECTIONS_MAX", 20)
    async with gateway_on(settings) as gateway:
        port = int(gateway.url.rpartition(":")[2])
        async with sockets(gateway, [b"GET /health/live HT"] * 30) as readers, asyncio.timeout(8):
            for reader in readers[22:]:  # the client of the test has connections of its own
                assert await reader.read() == b""
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0))
            writer.write(b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
            writer.close()
