"""The HTTP surface below the routes: methods, paths, limits, slow and broken clients, and how a worker is drained."""

import asyncio
import socket
import time

import pytest

from infra.lifecycle import Stop
from infra.settings import SigningSettings

from .gateway_fixtures import GatewayClient, gateway, settings, worker_on

__all__ = ["gateway", "settings"]


async def raw(gateway: GatewayClient, request: bytes, read_s: float = 3.0) -> bytes:
    """Everything the worker answers until it closes, or until `read_s` is over."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rpartition(":")[2]))
    writer.write(request)
    answer = b""
    try:
        async with asyncio.timeout(read_s):
            while part := await reader.read(65_536):
                answer += part
    except (TimeoutError, ConnectionResetError):
        pass
    finally:
        writer.close()
    return answer


async def test_unknown_paths_and_methods_are_problems(gateway: GatewayClient) -> None:
    """404, and 405 with what is allowed; HEAD is GET without a body; no CORS and no version anywhere."""
    product = await gateway.product(1)
    assert (await gateway.ask("GET", "/nothing")).is_problem(404, "not_found")
    for path in ("/api/products/0", "/api/products/x", "/api/products/99999999999", "/sse/stock/x", "/sse/stock/01"):
        assert (await gateway.ask("GET", path)).is_problem(404, "not_found"), path
    for method, path, allowed in (
        ("GET", "/api/order/buy-flash", "POST"),
        ("DELETE", "/api/orders", "GET, HEAD"),
        ("OPTIONS", "/api/orders", "GET, HEAD"),
        ("PUT", "/api/auth/login", "POST"),
        ("POST", "/metrics", "GET, HEAD"),
    ):
        answer = await gateway.ask(method, path, headers={"Origin": "https://elsewhere.example"})
        assert answer.is_problem(405, "method_not_allowed")
        assert answer.headers["Allow"] == allowed
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]
        assert answer.headers["Server"] == "thrones"
    head = await gateway.ask("HEAD", f"/api/products/{product}")
    assert (head.status, head.body) == (200, b"")
    assert int(head.headers["Content-Length"]) > 100


async def test_a_product_is_told_with_the_stock_of_this_moment(gateway: GatewayClient) -> None:
    """The stock comes from Redis each time, the server's clock comes with it."""
    product = await gateway.product(7)
    one = (await gateway.ask("GET", f"/api/products/{product}")).json
    assert one.keys() == {
        "id", "name", "price", "currency", "stock", "maxQuantity", "opensAt", "closesAt", "serverTime", "createdAt", "updatedAt"
    }  # fmt: skip
    assert (one["id"], one["price"], one["stock"], one["opensAt"]) == (product, "19.99", 7, None)
    assert one["serverTime"].endswith("Z")
    await gateway.buy({"productId": product, "quantity": 3})
    assert (await gateway.ask("GET", f"/api/products/{product}")).json["stock"] == 4
    listed = (await gateway.ask("GET", "/api/products")).json["products"]
    assert next(p for p in listed if p["id"] == product)["stock"] == 4


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"GET /health HTTP/1.1\nHost: x\n\n",
        b"GET /health HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n",
        b"GET /health HTTP/9.9\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 9_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
async def test_requests_that_could_be_read_two_ways_are_refused_and_closed(
    gateway: GatewayClient, request_bytes: bytes
) -> None:
    """One 400 or 431, as a problem, then the connection is closed: nothing is left on it to be read as a second request."""
    started = time.monotonic()
    answer = await raw(gateway, request_bytes + b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
    assert time.monotonic() - started < 2.9, "closed, not left open"
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 ", b"HTTP/1.0 400 ", b"HTTP/1.0 431 ")), answer[:200]
    assert answer.count(b"HTTP/1.") == 1, answer
    assert b"application/problem+json" in answer
    assert b"Python" not in answer
    assert b"aiohttp" not in answer


@pytest.mark.parametrize("protocol", [b"h2c", b"foo", b"TLS/1.0", b"websocket", b"tcp"])
async def test_an_upgrade_that_is_asked_for_is_ignored_and_all_that_follows_is_answered(
    gateway: GatewayClient, protocol: bytes
) -> None:
    """64 requests in one write, the 33rd asks to speak something else: 64 answers, in order (RFC 9110, 7.8)."""
    ask = b"GET /api/products/x%d HTTP/1.1\r\nHost: x\r\n%s\r\n"
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: " + protocol + b"\r\nHTTP2-Settings: AAMAAABk\r\n"
    requests = [ask % (n, upgrade if n == 32 else b"") for n in range(63)]
    last = b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    started = time.monotonic()
    answer = await raw(gateway, b"".join(requests) + last, read_s=15)
    assert time.monotonic() - started < 8
    assert answer.count(b"HTTP/1.1 404 ") == 63
    assert b'{"status":"ok"}' in answer.rpartition(b"HTTP/1.1 ")[2]
    assert b"101 " not in answer


async def test_a_purchase_that_asks_for_an_upgrade_is_a_purchase(gateway: GatewayClient) -> None:
    """Its body and the next request are read."""
    product = await gateway.product(2)
    body = b'{"productId":%d}' % product
    head = (
        b"POST /api/order/buy-flash HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        + f"Authorization: {gateway.bearer['Authorization']}\r\nContent-Length: {len(body)}\r\n".encode()
    )
    first = head + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n" + body
    answer = await raw(gateway, first + head + b"Connection: close\r\n\r\n" + body)
    assert answer.count(b"HTTP/1.1 202 ") == 2
    assert await gateway.available(product) == 0


async def test_a_tunnel_is_refused_and_what_follows_is_answered(gateway: GatewayClient) -> None:
    connect = b"CONNECT elsewhere.example:443 HTTP/1.1\r\nHost: elsewhere.example:443\r\n\r\n"
    last = b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = await raw(gateway, connect + last)
    assert answer.startswith((b"HTTP/1.1 404 ", b"HTTP/1.1 405 ")), answer[:300]
    assert answer.count(b"HTTP/1.1 ") == 2
    assert b'{"status":"ok"}' in answer


async def test_numbers_that_are_none_of_ours_are_refused_wherever_they_come(gateway: GatewayClient) -> None:
    """Huge, negative, not finite, not ASCII: 400 in bodies and queries, and a stream begins anew."""
    product = await gateway.product(1)
    order_id = (await gateway.buy({"productId": product})).json["orderId"]
    operator = await gateway.operator()
    numbers = (
        "9" * 400,
        "9" * 5_000,
        "-" + "9" * 400,
        "1" + "0" * 400 + ".0",
        "1e400",
        "1e99999999999999",
        "NaN",
        "Infinity",
    )
    for number in numbers:
        for body in (f'{{"productId":{number}}}', f'{{"productId":{product},"quantity":{number}}}'):
            assert (await gateway.buy(body.encode())).is_problem(400, "invalid_request"), number
        body = f'{{"action":"restock","why":"more","units":{number}}}'
        headers = {"Content-Type": "application/json", **operator.bearer}
        answer = await gateway.ask("POST", f"/api/ops/sales/{product}", data=body.encode(), headers=headers)
        assert answer.is_problem(400, "invalid_request"), number
        login = f'{{"email":"a@b.example","password":{number}}}'
        answer = await gateway.ask("POST", "/api/auth/login", data=login.encode(), headers=headers)
        assert answer.is_problem(400, "invalid_request"), number
    for text in (*numbers, "", "%20", "%00", "%ff", "%ED%A0%80", "%EF%BC%91", "+1", "1_0", "0x1"):
        for path in (f"/api/order/{order_id}/status?wait=", "/api/orders?limit=", "/api/orders?cursor="):
            answer = await gateway.ask("GET", path + text, headers=gateway.bearer)
            assert answer.is_problem(400, "invalid_request"), (path, text)
        assert (await gateway.ask("GET", f"/api/products/{text or '-'}")).is_problem(404, "not_found"), text
    for seen in (*numbers, f"{'9' * 400}.1", "1." + "9" * 400, "-1.1", "1.1.1", "\N{FULLWIDTH DIGIT ONE}.1"):
        headers = {"Last-Event-ID": seen, **gateway.bearer}
        for path in (f"/sse/stock/{product}", f"/sse/order/{order_id}"):
            async with gateway.session.get(gateway.url + path, headers=headers) as stream:
                assert stream.status == 200, (path, seen)
                assert b"data: " in await stream.content.readuntil(b"data: ")
    assert await gateway.available(product) == 0


async def test_clients_that_dawdle_are_cut(gateway: GatewayClient) -> None:
    """Half a request line, half the headers, half a body, nothing at all: closed within 10 s and a little."""
    auth = f"Authorization: {gateway.bearer['Authorization']}\r\n".encode()
    halves = [
        b"",
        b"POST /api/or",
        b"GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        b"POST /api/order/buy-flash HTTP/1.1\r\nHost: x\r\n" + auth
        + b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
    ]  # fmt: skip
    started = time.monotonic()
    answers = await asyncio.gather(*(raw(gateway, half, read_s=16) for half in halves))
    assert time.monotonic() - started < 12
    assert answers[3].startswith(b"HTTP/1.1 400 ")


async def test_a_body_that_drips_is_cut(gateway: GatewayClient) -> None:
    """A byte a second is always something; the time is that of the whole body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rpartition(":")[2]))
    head = b"POST /api/auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 900\r\n\r\n"
    writer.write(head)
    answer = asyncio.create_task(reader.readuntil(b"\r\n\r\n"))
    async with asyncio.timeout(12):
        while not answer.done():
            writer.write(b" ")
            await asyncio.wait({answer}, timeout=1.0)
    assert (await answer).startswith(b"HTTP/1.1 400 ")
    writer.close()


async def test_an_expectation_is_answered_before_the_body_is_sent(gateway: GatewayClient) -> None:
    """100 for a body that may come, 413 for one that is too large, 400 for an unknown expectation."""
    start = b"POST /api/auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    fine = await raw(gateway, start + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n{}")
    assert fine.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 400 ")
    large = await raw(gateway, start + b"Content-Length: 99999\r\nExpect: 100-continue\r\n\r\n")
    assert large.startswith(b"HTTP/1.1 413 ")
    odd = await raw(gateway, start + b"Content-Length: 2\r\nExpect: a-miracle\r\n\r\n{}")
    assert odd.startswith(b"HTTP/1.1 400 ")


async def test_metrics_count_what_was_answered(gateway: GatewayClient) -> None:
    """Acceptances and refusals by code, without users or orders in the labels."""
    product = await gateway.product(1)
    order_id = (await gateway.buy({"productId": product})).json["orderId"]
    await gateway.buy({"productId": product})
    text = (await gateway.ask("GET", "/metrics")).body.decode()
    assert "thrones_gateway_accepted_total " in text
    assert 'thrones_gateway_refused_total{code="sold_out"} ' in text
    assert order_id not in text
    assert str(gateway.user_id) not in text


async def test_a_draining_worker_resets_nobody(settings: SigningSettings) -> None:
    """While buyers buy on kept-alive connections it is told to stop: every request sent gets its answer, the last one of a
    connection says so, long waits end, and it is done within 25 s."""
    sock = socket.create_server(("127.0.0.1", 0), backlog=512)
    sock.setblocking(False)
    stop = Stop()
    async with worker_on(settings, sock, stop) as (gateway, worker):
        product = await gateway.product(10_000)
        order_id = (await gateway.buy({"productId": product})).json["orderId"]
        waiting = asyncio.create_task(gateway.status(order_id, "?wait=20"))
        ends = await asyncio.gather(*(_buy_until_closed(gateway, product, stop) for _ in range(20)))
        assert ends == ["closed"] * 20
        assert (await waiting).status == 200
        await asyncio.wait_for(worker, 25)
        assert await gateway.to.redis.hget(f"stock:{{p{product}}}", "held") is not None


async def _buy_until_closed(gateway: GatewayClient, product: int, stop: Stop) -> str:
    """Buys on one connection; "closed" when the last answer announced it, anything else is a reset."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rpartition(":")[2]))
    body = b'{"productId":%d}' % product
    request = (
        b"POST /api/order/buy-flash HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        + f"Authorization: {gateway.bearer['Authorization']}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    started = time.monotonic()
    try:
        while True:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith((b"HTTP/1.1 202 ", b"HTTP/1.1 429 "))
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            if b"Connection: close" in head:
                return "closed"
            if time.monotonic() - started > 0.5 and not stop.stopping:
                stop.set()
    except (asyncio.IncompleteReadError, ConnectionResetError) as error:
        return repr(error)
    finally:
        writer.close()
