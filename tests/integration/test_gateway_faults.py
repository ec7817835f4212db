"""What buyers see while Redis or Postgres is away or loses replies: never a hang, never a guess, never a unit taken twice."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit
from uuid import uuid4

from infra.settings import SigningSettings

from .fault_proxy import FaultProxy, fault_proxy
from .gateway_fixtures import UNKNOWN_ORDER, GatewayClient, gateway, gateway_on, settings

__all__ = ["gateway", "settings"]


@asynccontextmanager
async def behind_proxy(settings: SigningSettings) -> AsyncIterator[tuple[GatewayClient, FaultProxy]]:
    where = urlsplit(settings.redis_url)
    async with fault_proxy(where.hostname or "", where.port or 0) as proxy:
        proxy.only_after = b"EVALSHA"
        url = f"redis://127.0.0.1:{proxy.port}{where.path}"
        async with gateway_on(settings, redis_url=url) as client:
            yield client, proxy


async def test_redis_away_is_503_at_once_and_back_is_back(settings: SigningSettings) -> None:
    """Nothing was sent, so nothing was reserved, and that is said within 250 ms; no restart is needed afterwards."""
    async with behind_proxy(settings) as (gateway, proxy):
        product = await gateway.product(5)
        assert (await gateway.buy({"productId": product})).status == 202
        await proxy.refuse()
        for _ in range(5):
            started = time.monotonic()
            assert (await gateway.buy({"productId": product})).is_problem(503, "unavailable")
            assert time.monotonic() - started < 0.25
        assert (await gateway.ask("GET", f"/api/products/{product}")).is_problem(503, "unavailable")
        assert (await gateway.ask("GET", "/api/products")).is_problem(503, "unavailable")
        assert (await gateway.ask("GET", f"/sse/stock/{product}")).is_problem(503, "unavailable")
        assert (await gateway.ask("GET", "/health/ready")).status == 503
        assert (await gateway.ask("GET", "/health/live")).status == 200
        await proxy.listen()
        assert (await gateway.buy({"productId": product})).status == 202
        assert await gateway.available(product) == 3


async def test_postgres_away_degrades_a_worker_and_takes_nothing_else_from_it(settings: SigningSettings) -> None:
    """It starts and is ready; who logs in is told to come back, a product that nobody knows is not denied."""
    async with gateway_on(settings, db_port=9) as gateway:
        ready = await gateway.ask("GET", "/health/ready")
        assert (ready.status, ready.json["status"], ready.json["degraded"]) == (200, "degraded", ["postgres"])
        body = {"email": "arya@winterfell.example", "password": "valar morghulis"}
        assert (await gateway.ask("POST", "/api/auth/login", json=body)).is_problem(503, "unavailable")
        assert (await gateway.ask("GET", "/api/products/2147483646")).is_problem(503, "unavailable")


async def test_a_lost_reply_costs_no_unit_and_no_order(settings: SigningSettings) -> None:
    """The script ran, its reply is lost: the second run finds the order, with a key and without one."""
    async with behind_proxy(settings) as (gateway, proxy):
        product = await gateway.product(5)
        assert (await gateway.buy({"productId": product})).status == 202
        for key in (None, uuid4().hex):
            before = await gateway.available(product)
            proxy.lose_replies = 1
            answer = await gateway.buy({"productId": product}, key)
            assert answer.status == 202
            assert await gateway.available(product) == before - 1
            assert (await gateway.status(answer.json["orderId"])).json["status"] == "queued"


async def test_a_reply_lost_twice_is_unknown_and_can_be_found_out(settings: SigningSettings) -> None:
    """504 names the order; its status tells, and repeating with the key gives the same order."""
    async with behind_proxy(settings) as (gateway, proxy):
        product = await gateway.product(5)
        await gateway.buy({"productId": product})
        key = uuid4().hex
        proxy.lose_replies = 2
        answer = await gateway.buy({"productId": product}, key)
        assert answer.is_problem(504, "outcome_unknown")
        order_id = answer.json["orderId"]
        assert answer.headers["Location"] == f"/api/order/{order_id}/status"
        assert (await gateway.status(order_id)).status == 200
        assert (await gateway.buy({"productId": product}, key)).json["orderId"] == order_id
        assert await gateway.available(product) == 3


async def test_a_refusal_after_a_lost_reply_is_not_taken_for_definite(settings: SigningSettings) -> None:
    """A keyless buyer of the last unit whose reply is lost is not told "sold out": its order may be the one."""
    async with behind_proxy(settings) as (gateway, proxy):
        product = await gateway.product(1)
        await gateway.buy({"productId": product, "quantity": 2})  # the product and the script are known now
        proxy.lose_replies = 1
        answer = await gateway.buy({"productId": product})
        assert answer.status == 202
        proxy.lose_replies = 1
        await asyncio.sleep(1.1)  # beyond the sold-out memory
        answer = await gateway.another_user().buy({"productId": product})
        assert answer.is_problem(504, "outcome_unknown")


async def test_an_order_is_denied_only_when_both_stores_have_answered(settings: SigningSettings) -> None:
    """Unverified books or Postgres away: 503. Verified books and no row: 404, byte for byte that of another's order."""
    async with gateway_on(settings) as gateway:
        await gateway.to.redis.delete("books:run")
        assert (await gateway.status(UNKNOWN_ORDER)).is_problem(503, "unavailable")
        await gateway.verify_books()
        unknown = await gateway.status(UNKNOWN_ORDER)
        assert unknown.is_problem(404, "not_found")
        product = await gateway.product(1)
        order_id = (await gateway.buy({"productId": product})).json["orderId"]
        others = await gateway.another_user().status(order_id)
        assert (others.status, others.words) == (404, unknown.words)
        assert (await gateway.status("no-order")).words == unknown.words
    async with gateway_on(settings, db_port=9) as gateway:
        assert (await gateway.status(UNKNOWN_ORDER)).is_problem(503, "unavailable")
        assert (await gateway.ask("GET", "/api/orders", headers=gateway.bearer)).is_problem(503, "unavailable")
        assert (await gateway.ask("GET", "/api/auth/me", headers=gateway.bearer)).is_problem(503, "unavailable")
        assert (await gateway.buy({"productId": 2_147_483_646})).is_problem(503, "unavailable")


async def test_an_order_that_redis_forgot_is_read_from_postgres(gateway: GatewayClient) -> None:
    """The read model expires a day after the end; the row stays, for the status and for the list."""
    product = await gateway.product(3)
    ids: list[str] = []
    for _ in range(3):
        order_id = (await gateway.buy({"productId": product})).json["orderId"]
        ids.insert(0, order_id)
        await gateway.to.pool.execute(
            "INSERT INTO orders (id, product_id, user_id, quantity, unit_price_cents, currency, status, epoch, version,"
            " available, placed_at_ms) VALUES ($1, $2, $3, 1, 1999, 'USD', 'confirmed', 1, 1, 1, 1790000000000)",
            order_id,
            product,
            gateway.user_id,
        )
        await gateway.to.redis.delete(f"order:{order_id}")
    answer = await gateway.status(ids[0])
    assert answer.status == 200
    assert answer.json["status"] == "confirmed"
    assert answer.json["createdAt"] == "2026-09-21T14:13:20.000Z"
    page = await gateway.ask("GET", "/api/orders?limit=2", headers=gateway.bearer)
    assert [order["orderId"] for order in page.json["orders"]] == ids[:2]
    rest = await gateway.ask("GET", f"/api/orders?limit=2&cursor={page.json['next']}", headers=gateway.bearer)
    assert [order["orderId"] for order in rest.json["orders"]] == ids[2:]
    assert rest.json["next"] is None
    for query in ("limit=0", "limit=101", "limit=x", "cursor=x"):
        answer = await gateway.ask("GET", f"/api/orders?{query}", headers=gateway.bearer)
        assert answer.is_problem(400, "invalid_request")
