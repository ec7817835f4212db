"""Event streams and long waits through a real worker: snapshot first, only newer values, nobody waits for a slow reader."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson
import pytest

from gateway.http import event_stream
from gateway.http.problems import Problem
from gateway.watching.order_status import OrderReader
from infra.kafka.publisher import HEADERS
from infra.settings import SigningSettings
from sale.books.inventory import Inventory
from sale.books.read_model import OrderView
from sale.operations.operations import open_stock
from schemas import topics
from schemas.clock import now_ms
from schemas.codec import encode
from schemas.events import OrderStatusChanged, Step, StockChanged
from schemas.ids import OrderId, ProductId
from schemas.order_state import Entry, Status
from tests.sockets import fall_silent

from .gateway_fixtures import UNKNOWN_ORDER, GatewayClient, gateway, gateway_on, settings

__all__ = ["gateway", "settings"]

SLACK_S = 3.0  # of a busy machine


class Events:
    """The events of one open stream."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def next(self, within_s: float = 8.0) -> dict[str, str]:
        """Fields of the next event; comments are skipped. Raises EOFError at the end."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(within_s):
            while line := await self.response.content.readline():
                text = line.decode().rstrip("\n")
                if not text and "data" in fields:
                    return fields
                name, _, value = text.partition(": ")
                if name:
                    fields[name] = value
        raise EOFError


@asynccontextmanager
async def stream(gateway: GatewayClient, path: str, **options: Any) -> AsyncIterator[Events]:
    async with gateway.session.get(gateway.url + path, **options) as response:
        assert response.status == 200, await response.read()
        assert response.headers["Content-Type"].startswith("text/event-stream")
        assert response.headers["Connection"] == "close", "a kept connection would be closed under the next request"
        assert response.headers["X-Accel-Buffering"] == "no"
        yield Events(response)


async def test_the_snapshot_comes_first_and_then_what_is_newer(gateway: GatewayClient) -> None:
    """A client gets the present stock at once, later values in order, and nothing that is older."""
    product = await gateway.product(9)
    async with stream(gateway, f"/sse/stock/{product}") as events, stream(gateway, f"/sse/stock/{product}") as others:
        first = await events.next(1.0)
        assert first["id"] == "1.0"
        assert orjson.loads(first["data"]) == {"productId": product, "stock": 9}
        assert 1_000 <= int(first["retry"]) <= 5_000
        assert "event" not in first
        assert (await others.next(1.0))["data"] == first["data"]
        await gateway.buy({"productId": product, "quantity": 4})
        second = await events.next()
        assert (second["id"], orjson.loads(second["data"])["stock"]) == ("1.1", 5)
        assert (await others.next())["id"] == "1.1"
        for version, available in ((1, 77), (0, 88), (5, 2)):
            await _publish_stock(gateway, product, version, available)
        newest = await events.next()
        assert (newest["id"], orjson.loads(newest["data"])["stock"]) == ("1.5", 2)


async def test_news_from_the_log_arrive_without_waiting_for_the_next_look(
    gateway: GatewayClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tail alone brings a change; looking at Redis every 2 s is the fallback."""
    monkeypatch.setattr("gateway.watching.stock_stream.READ_INTERVAL_S", 60.0)
    product = await gateway.product(9)
    async with stream(gateway, f"/sse/stock/{product}") as events:
        await events.next()
        for version in range(1, 100):  # the tail needs a moment to find the end of the topic
            await _publish_stock(gateway, product, version, 9 - version % 9)
            try:
                assert (await events.next(0.3))["id"].startswith("1.")
                return
            except TimeoutError:
                continue
        raise AssertionError("no news")


async def test_a_new_epoch_is_newer_whatever_its_version(gateway: GatewayClient) -> None:
    """After a rebuild the numbering starts again under a higher epoch, and streams follow."""
    product = await gateway.product(9)
    await gateway.buy({"productId": product})
    async with stream(gateway, f"/sse/stock/{product}") as events:
        assert (await events.next())["id"] == "1.1"
        await open_stock(gateway.to, product, "test")
        assert (await events.next())["id"].startswith("2.")


async def test_who_comes_back_gets_only_what_is_newer_than_the_last_event_seen(gateway: GatewayClient) -> None:
    """Last-Event-ID resumes a stock stream: nothing is shown twice; ids of the future and nonsense are not believed."""
    product = await gateway.product(9)
    path = f"/sse/stock/{product}"
    async with stream(gateway, path, headers={"Last-Event-ID": "1.0"}) as events:
        await gateway.buy({"productId": product})
        assert (await events.next())["id"] == "1.1"
    for claimed in ("1.0", "9.9", "1", "x.y", "-1.0"):
        async with stream(gateway, path, headers={"Last-Event-ID": claimed}) as events:
            assert (await events.next(1.0))["id"] == "1.1", claimed


async def test_streams_of_unknown_products_and_too_many_streams_are_refused(
    settings: SigningSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """404 and 503 are said before the stream begins. Of a full worker, the address with most streams makes room for another."""
    monkeypatch.setattr("gateway.watching.stock_stream.STREAMS_MAX", 2)
    async with gateway_on(settings, trusted_proxies=("127.0.0.0/8",)) as gateway:
        assert (await gateway.ask("GET", "/sse/stock/2147483645")).is_problem(404, "not_found")
        path = f"/sse/stock/{await gateway.product(1)}"
        flood, another = ({"X-Forwarded-For": f"203.0.113.{n}"} for n in (1, 2))
        async with stream(gateway, path, headers=flood) as oldest, stream(gateway, path, headers=flood) as newest:
            await oldest.next()
            await newest.next()
            assert (await gateway.ask("GET", path, headers=flood)).is_problem(503, "busy")
            async with stream(gateway, path, headers=another) as events:
                await events.next()
                with pytest.raises((EOFError, aiohttp.ClientError)):
                    await oldest.next()
                assert (await gateway.ask("GET", path, headers=another)).is_problem(503, "busy")


async def test_of_a_full_worker_the_user_with_most_waits_and_streams_makes_room_for_another(
    settings: SigningSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wait that gives way, or finds no place, answers with the present state; a stream that does is cut."""
    monkeypatch.setattr("gateway.watching.order_status.WAITS_MAX", 2)
    monkeypatch.setattr("gateway.watching.order_stream.STREAMS_MAX", 2)
    async with gateway_on(settings) as gateway:
        product, buyer = await gateway.product(9), gateway.another_user()
        mine = (await gateway.buy({"productId": product})).json["orderId"]
        his = (await buyer.buy({"productId": product})).json["orderId"]
        waits = [asyncio.create_task(gateway.status(mine, "?wait=20")) for _ in range(2)]
        await asyncio.sleep(0.3)
        assert (await asyncio.wait_for(gateway.status(mine, "?wait=20"), 5)).json["status"] == "queued"
        waiting = asyncio.create_task(buyer.status(his, "?wait=20"))
        done, waits_left = await asyncio.wait(waits, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        assert [task.result().json["status"] for task in done] == ["queued"]
        assert not waiting.done()
        for task in (*waits_left, waiting):
            task.cancel()
        path = f"/sse/order/{mine}"
        async with (
            stream(gateway, path, headers=gateway.bearer) as oldest,
            stream(gateway, path, headers=gateway.bearer),
        ):
            await oldest.next()
            assert (await gateway.ask("GET", path, headers=gateway.bearer)).is_problem(503, "busy")
            async with stream(gateway, f"/sse/order/{his}", headers=buyer.bearer) as events:
                await events.next()
                with pytest.raises((EOFError, aiohttp.ClientError)):
                    await oldest.next()


async def test_a_user_gets_so_many_tickets_a_second(gateway: GatewayClient) -> None:
    """Each is kept in Redis for as long as it lives."""
    asked = [gateway.ask("POST", "/api/auth/ticket", headers=gateway.bearer) for _ in range(60)]
    answers = await asyncio.gather(*asked)
    assert {answer.status for answer in answers} == {200, 429}
    assert next(answer for answer in answers if answer.status == 429).is_problem(429, "rate_limited")
    other = gateway.another_user()
    assert (await other.ask("POST", "/api/auth/ticket", headers=other.bearer)).status == 200


async def test_a_reader_that_stops_reading_is_cut_and_delays_nobody(
    gateway: GatewayClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its buffers fill, it is skipped, then it is gone; the reader beside it sees every change in time."""
    monkeypatch.setattr(event_stream, "STALLED_S", 1.0)
    monkeypatch.setattr(event_stream, "SEND_BUFFER_BYTES", 4_096)
    monkeypatch.setattr("gateway.watching.stock_stream.MIN_INTERVAL_S", 0.0)
    product = await gateway.product(10**6)
    cut_before = await _cut(gateway)
    slow = socket.create_connection(("127.0.0.1", int(gateway.url.rpartition(":")[2])))
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
    slow.sendall(b"GET /sse/stock/%d HTTP/1.1\r\nHost: x\r\n\r\n" % product)
    try:
        async with stream(gateway, f"/sse/stock/{product}") as events:
            await events.next()
            version, worst_s = 0, 0.0
            until = time.monotonic() + 30
            while await _streams(gateway) > 1:
                assert time.monotonic() < until, "it is never cut"
                for _ in range(200):
                    version += 1
                    await gateway.to.redis.hset(f"stock:{{p{product}}}", mapping={"version": version})
                    await _publish_stock(gateway, product, version, 10**6 - version)
                started = time.monotonic()
                while (await events.next())["id"] != f"1.{version}":
                    continue
                worst_s = max(worst_s, time.monotonic() - started)
            assert worst_s < 2.5
            assert await _cut(gateway) == cut_before + 1
    finally:
        slow.close()


async def test_a_reader_that_has_vanished_from_a_quiet_stream_is_cut_within_ten_seconds(gateway: GatewayClient) -> None:
    """Half-open connections: nothing more is acknowledged, and nothing has to be sent to notice it. Who leaves is not cut."""
    cut_before = await _cut(gateway)
    product = await gateway.product(9)
    order_id = (await gateway.buy({"productId": product})).json["orderId"]
    paths = (b"/sse/stock/%d" % product, b"/sse/order/%s" % order_id.encode())
    vanished = [await asyncio.to_thread(_first_event, gateway, path) for path in paths]
    try:
        assert await _streams(gateway) == 2
        for sock in vanished:
            fall_silent(sock)
        silent_at = time.monotonic()
        while await _streams(gateway) > 0:
            assert time.monotonic() - silent_at < 10 + SLACK_S, "it is never cut"
            await asyncio.sleep(0.1)
        assert await _cut(gateway) == cut_before + 2
        async with stream(gateway, f"/sse/stock/{product}") as events:
            await events.next()
        async with asyncio.timeout(SLACK_S):
            while await _streams(gateway) > 0:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.05)
        assert await _cut(gateway) == cut_before + 2
    finally:
        for sock in vanished:
            sock.close()


async def test_a_quiet_stream_says_now_and_then_that_it_is_alive(
    settings: SigningSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A comment every 15 s on either stream, so that proxies and clients do not give it up. It ends no event: no blank line."""
    assert event_stream.KEEP_ALIVE_INTERVAL_S == 15
    for module in ("stock_stream", "order_stream"):
        monkeypatch.setattr(f"gateway.watching.{module}.KEEP_ALIVE_INTERVAL_S", 0.2)
    async with gateway_on(settings) as gateway:
        product = await gateway.product(9)
        order_id = (await gateway.buy({"productId": product})).json["orderId"]
        for path in (f"/sse/stock/{product}", f"/sse/order/{order_id}"):
            async with stream(gateway, path, headers=gateway.bearer) as events, asyncio.timeout(20):
                await events.next()
                lines = [await events.response.content.readline() for _ in range(3)]
                assert lines == [b": keep-alive\n"] * 3


async def test_streams_end_when_the_worker_is_drained(settings: SigningSettings) -> None:
    """A proper end, not a reset: the client comes back to another worker after its `retry`."""
    async with gateway_on(settings) as gateway:
        product = await gateway.product(1)
        order_id = (await gateway.buy({"productId": product})).json["orderId"]
        async with (
            stream(gateway, f"/sse/stock/{product}") as stock,
            stream(gateway, f"/sse/order/{order_id}", headers=gateway.bearer) as order,
        ):
            await stock.next()
            await order.next()
            waiting = asyncio.create_task(gateway.status(order_id, "?wait=25"))
            await asyncio.sleep(0.1)
            started = time.monotonic()
            gateway.drain()
            for events in (stock, order):
                with pytest.raises(EOFError):
                    await events.next()
            assert (await waiting).json["status"] == "queued"
            assert time.monotonic() - started < 2


async def test_an_order_is_followed_to_its_end(gateway: GatewayClient) -> None:
    """By its stream and by a long wait: the present state first, then the terminal one, then the stream closes."""
    product = await gateway.product(1)
    order_id = OrderId((await gateway.buy({"productId": product})).json["orderId"])
    async with stream(gateway, f"/sse/order/{order_id}", headers=gateway.bearer) as events:
        first = await events.next()
        assert (first["event"], first["id"]) == ("status", "queued")
        assert orjson.loads(first["data"]).keys() == {"orderId", "status", "updatedAt"}
        assert orjson.loads(first["data"])["status"] == "queued"
        waiting = asyncio.create_task(gateway.status(order_id, "?wait=20"))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        started = time.monotonic()
        await _end(gateway, product, order_id)
        assert (await waiting).json["status"] == "confirmed"
        last = await events.next()
        assert orjson.loads(last["data"])["status"] == "confirmed"
        assert time.monotonic() - started < 3.5
        with pytest.raises(EOFError):
            await events.next()
    seen = {**gateway.bearer, "Last-Event-ID": "confirmed"}
    assert (await gateway.ask("GET", f"/sse/order/{order_id}", headers=seen)).status == 204
    async with stream(gateway, f"/sse/order/{order_id}", headers={**seen, "Last-Event-ID": "queued"}) as events:
        assert (await events.next())["id"] == "confirmed"
    done = await gateway.status(order_id, "?wait=20")
    assert [step["status"] for step in done.json["history"]] == ["queued", "processing", "confirmed"]


async def test_a_wait_and_a_stream_outlive_a_moment_in_which_the_order_cannot_be_read(
    gateway: GatewayClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both stores away at the moment of the end: the waiting clients are not sent away, they learn it a little later."""
    product = await gateway.product(1)
    order_id = OrderId((await gateway.buy({"productId": product})).json["orderId"])
    find, failed = OrderReader._find, 0

    async def failing(reader: OrderReader, wanted: OrderId) -> OrderView:
        nonlocal failed
        if failed < 4:
            failed += 1
            raise Problem("unavailable")
        return await find(reader, wanted)

    async with stream(gateway, f"/sse/order/{order_id}", headers=gateway.bearer) as events:
        assert (await events.next())["id"] == "queued"
        waiting = asyncio.create_task(gateway.status(order_id, "?wait=25"))
        await asyncio.sleep(0.2)
        monkeypatch.setattr(OrderReader, "_find", failing)
        await _end(gateway, product, order_id)
        answer = await waiting
        assert (answer.status, answer.json["status"]) == (200, "confirmed")
        assert (await events.next(20))["id"] == "confirmed"
    assert failed == 4


async def test_the_longest_wait_is_25_s_and_it_ends_when_asked(gateway: GatewayClient) -> None:
    """A second's wait takes a second; nonsense is 400."""
    product = await gateway.product(1)
    order_id = (await gateway.buy({"productId": product})).json["orderId"]
    started = time.monotonic()
    assert (await gateway.status(order_id, "?wait=1")).json["status"] == "queued"
    assert 0.9 < time.monotonic() - started < 2.5
    for wait in ("26", "-1", "x", "1e1", "nan", ""):
        assert (await gateway.status(order_id, f"?wait={wait}")).is_problem(400, "invalid_request"), wait


async def test_a_ticket_opens_one_stream_once(gateway: GatewayClient) -> None:
    """For its own user's orders only, and never a second time."""
    await gateway.verify_books()
    product = await gateway.product(2)
    order_id = (await gateway.buy({"productId": product})).json["orderId"]
    issued = await gateway.ask("POST", "/api/auth/ticket", headers=gateway.bearer)
    assert issued.json["expiresIn"] == 30
    path = f"/sse/order/{order_id}?ticket={issued.json['ticket']}"
    async with stream(gateway, path) as events:
        await events.next()
    assert (await gateway.ask("GET", path)).is_problem(401, "unauthorized")
    assert (await gateway.ask("GET", f"/sse/order/{order_id}?ticket=wrong")).is_problem(401, "unauthorized")
    assert (await gateway.ask("GET", f"/sse/order/{order_id}")).is_problem(401, "unauthorized")
    stranger = gateway.another_user()
    others = await gateway.ask("GET", f"/sse/order/{order_id}", headers=stranger.bearer)
    unknown = await gateway.ask("GET", f"/sse/order/{UNKNOWN_ORDER}", headers=stranger.bearer)
    assert (others.status, others.words) == (unknown.status, unknown.words)
    assert others.is_problem(404, "not_found")


def _first_event(gateway: GatewayClient, path: bytes) -> socket.socket:
    """An open stream whose first event has come."""
    sock = socket.create_connection(("127.0.0.1", int(gateway.url.rpartition(":")[2])), timeout=10)
    sock.sendall(b"GET %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n" % (path, gateway.token.encode()))
    received = b""
    while b"data: " not in received:
        received += sock.recv(65_536)
    return sock


async def _publish_stock(gateway: GatewayClient, product: ProductId, version: int, available: int) -> None:
    event = StockChanged(product_id=product, epoch=1, version=version, available=available, at_ms=1)
    await gateway.to.publisher.publish(topics.STOCK_CHANGES, str(product), encode(event), HEADERS)


async def _streams(gateway: GatewayClient) -> float:
    text = (await gateway.ask("GET", "/metrics")).body.decode()
    return float(text.partition("\nthrones_gateway_streams ")[2].partition("\n")[0])


async def _cut(gateway: GatewayClient) -> float:
    text = (await gateway.ask("GET", "/metrics")).body.decode()
    return float(text.partition("\nthrones_gateway_streams_cut_total ")[2].partition("\n")[0])


async def _end(gateway: GatewayClient, product: ProductId, order_id: OrderId) -> None:
    """What the stages and the projector do: settle, announce on the log, write the read model."""
    inventory = Inventory(gateway.to.redis)
    [settled] = await inventory.settle([(product, order_id, Entry.SOLD)])
    assert settled is not None
    at_ms = now_ms()
    event = OrderStatusChanged(
        order_id=order_id,
        product_id=product,
        user_id=gateway.user_id,
        quantity=1,
        total_cents=1_999,
        currency="USD",
        status=Status.CONFIRMED,
        placed_at_ms=at_ms,
        at_ms=at_ms,
        steps=(Step(Status.PROCESSING, at_ms), Step(Status.CONFIRMED, at_ms)),
        epoch=settled.epoch,
        version=settled.version,
        available=settled.available,
    )
    await gateway.to.publisher.publish(topics.ORDER_STATUS, order_id, encode(event), HEADERS)
    await asyncio.sleep(0.1)  # the log is ahead of the read model
    await inventory.project([event])
