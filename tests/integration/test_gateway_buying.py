"""Buying through a real worker on real servers: what is accepted, what is refused, and that a refusal takes nothing."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import orjson
import pytest

from infra.kafka.client import make_consumer
from infra.settings import SigningSettings
from sale.books import keys
from sale.books.inventory import Held, Inventory, Reservation
from schemas import topics
from schemas.clock import now_ms
from schemas.codec import decode
from schemas.events import OrderPlaced
from schemas.ids import UserId, new_order_id
from schemas.order_state import Entry

from .gateway_fixtures import GatewayClient, gateway, gateway_on, settings

__all__ = ["gateway", "settings"]


async def test_a_full_redis_is_refused_early_and_what_was_sold_is_settled(settings: SigningSettings) -> None:
    """Above the share of its memory no purchase gets as far as Redis, which still takes every other write."""
    async with gateway_on(settings, redis_full_at_share=0.000_1) as gateway:
        product = await gateway.product(5)
        inventory = Inventory(gateway.to.redis)
        wish = Reservation(new_order_id(), UserId(gateway.user_id), product, 1, 1_999, "USD")
        assert isinstance(await inventory.reserve(wish), Held)
        async with asyncio.timeout(10):  # until the worker has looked
            while True:
                answer = await gateway.buy({"productId": product}, key=uuid4().hex)
                if answer.status != 202:
                    break
                await asyncio.sleep(0.05)
        assert answer.is_problem(503, "unavailable")
        assert "no room" in answer.json["detail"]
        before = await gateway.available(product)
        assert await inventory.settle([(product, wish.order_id, Entry.RELEASED)]) != [None]
        assert await gateway.available(product) == before + 1


async def test_who_is_always_declined_gets_429_until_it_is_forgotten(settings: SigningSettings) -> None:
    async with gateway_on(settings, declines_per_hour_per_user=2) as gateway:
        product, other = await gateway.product(5), await gateway.product(5)
        await gateway.to.redis.hset(keys.declined(product), str(gateway.user_id), 2)
        await gateway.to.redis.pexpire(keys.declined(product), 90_500)
        answer = await gateway.buy({"productId": product})
        assert answer.is_problem(429, "rate_limited")
        assert int(answer.headers["Retry-After"]) in (90, 91)
        assert "declined" in answer.json["detail"]
        assert (await gateway.buy({"productId": other})).status == 202, "a product's declines are its own"
        assert (await gateway.another_user().buy({"productId": product})).status == 202


async def test_an_order_is_of_at_most_the_products_max_quantity(gateway: GatewayClient) -> None:
    """More is no request that could ever be granted; within it, more than is left is sold out."""
    few, many = await gateway.product(12), await gateway.product(200_000, max_quantity=150_000)
    answer = await gateway.buy({"productId": few, "quantity": 11})
    assert answer.is_problem(400, "invalid_request")
    assert "at most 10 units" in answer.json["detail"]
    assert (await gateway.buy({"productId": few, "quantity": 10})).status == 202
    assert (await gateway.buy({"productId": few, "quantity": 3})).is_problem(409, "sold_out")
    assert (await gateway.buy({"productId": many, "quantity": 150_000})).status == 202
    assert (await gateway.buy({"productId": many, "quantity": 150_000})).is_problem(409, "sold_out")
    assert (await gateway.buy({"productId": many})).status == 202, "one large order makes nobody wait"
    listed = (await gateway.ask("GET", "/api/products")).json["products"]
    assert {p["id"]: p["maxQuantity"] for p in listed if p["id"] in (few, many)} == {few: 10, many: 150_000}
    assert (await gateway.ask("GET", f"/api/products/{many}")).json["maxQuantity"] == 150_000


async def test_an_order_of_more_than_may_be_held_is_sold_out_and_not_busy_for_ever(gateway: GatewayClient) -> None:
    product = await gateway.product(5)
    await gateway.to.redis.hset(keys.stock(product), "max_held", 7)
    assert (await gateway.buy({"productId": product, "quantity": 8})).is_problem(409, "sold_out")


async def test_an_accepted_order_is_answered_held_and_on_the_log(gateway: GatewayClient) -> None:
    """202 means: units held in Redis, order.placed on the log, the read model there at once."""
    product = await gateway.product(3)
    consumer = make_consumer(gateway.settings, topics.ORDERS.name, auto_offset_reset="latest")
    await consumer.start()
    try:
        await consumer.seek_to_end()
        answer = await gateway.buy({"productId": product, "quantity": 2})
        assert answer.status == 202
        order_id = answer.json["orderId"]
        assert answer.json == {
            "success": True,
            "orderId": order_id,
            "status": "queued",
            "message": "Order queued for processing",
            "checkStatusUrl": f"/order/{order_id}/status",
            "product": {"id": product, "name": "Valyrian steel", "price": "19.99"},
        }
        assert answer.headers["Location"] == f"/api/order/{order_id}/status"
        async with asyncio.timeout(10):
            while (record := await consumer.getone()).key != order_id.encode():
                continue
        placed = decode(record.value)
        assert isinstance(placed, OrderPlaced)
        assert (placed.user_id, placed.quantity, placed.unit_price_cents) == (gateway.user_id, 2, 1_999)
        assert (placed.version, placed.available) == (1, 1)
    finally:
        await consumer.stop()
    status = await gateway.status(order_id)
    assert status.status == 200
    assert status.json["status"] == "queued"
    assert status.json["totalPrice"] == "39.98"
    assert status.json["userId"] == gateway.user_id
    assert [step["status"] for step in status.json["history"]] == ["queued"]
    assert await gateway.available(product) == 1


async def test_the_last_unit_is_sold_and_then_none(gateway: GatewayClient) -> None:
    """A sold-out product answers 409, from Redis and from the worker's memory alike."""
    product = await gateway.product(1)
    assert (await gateway.buy({"productId": product})).status == 202
    for _ in range(3):
        assert (await gateway.buy({"productId": product})).is_problem(409, "sold_out")
    assert await gateway.available(product) == 0


async def test_a_larger_wish_that_was_refused_does_not_refuse_a_smaller_one(gateway: GatewayClient) -> None:
    """The sold-out memory holds for the quantity that was refused, not for the product."""
    product = await gateway.product(2)
    assert (await gateway.buy({"productId": product, "quantity": 3})).is_problem(409, "sold_out")
    assert (await gateway.buy({"productId": product, "quantity": 2})).status == 202


async def test_a_repeated_key_gets_the_same_bytes_also_when_sold_out(gateway: GatewayClient) -> None:
    """The key is asked before stock, and the memory of "sold out" never answers a request with a key."""
    product = await gateway.product(1)
    key = uuid4().hex
    first = await gateway.buy({"productId": product}, key)
    assert first.status == 202
    assert (await gateway.buy({"productId": product})).is_problem(409, "sold_out")
    second = await gateway.buy(b'{"quantity": 1, "productId": %d}' % product, key)
    assert (second.status, second.body) == (202, first.body)
    assert (await gateway.buy({"productId": product, "quantity": 2}, key)).is_problem(422, "key_reused")
    assert (await gateway.another_user().buy({"productId": product}, key)).is_problem(409, "sold_out")


async def test_fifty_copies_of_one_key_at_once_are_one_order(gateway: GatewayClient) -> None:
    """A double click costs one unit, however many clicks."""
    product = await gateway.product(100)
    key = uuid4().hex
    answers = await asyncio.gather(*(gateway.buy({"productId": product}, key) for _ in range(50)))
    assert {answer.status for answer in answers} == {202}
    assert len({answer.body for answer in answers}) == 1
    assert sorted(answer.headers.get("Idempotent-Replayed", "") for answer in answers) == [
        "",
        *["true"] * (len(answers) - 1),
    ]
    assert await gateway.available(product) == 99


@pytest.mark.parametrize(
    "quantity",
    ["0", "-1", "1.5", "1.0", '"1"', "true", "null", "NaN", "1e400", "1e2", "9223372036854775808", "[1]", "{}"],
)
async def test_a_quantity_that_is_no_count_is_refused(gateway: GatewayClient, quantity: str) -> None:
    """400, and the stock is untouched."""
    product = await gateway.product(5)
    body = f'{{"productId":{product},"quantity":{quantity}}}'.encode()
    assert (await gateway.buy(body)).is_problem(400, "invalid_request")
    assert await gateway.available(product) == 5


async def test_bodies_that_cannot_be_read_are_refused(gateway: GatewayClient) -> None:
    """Broken, deep, doubled or foreign members, bad UTF-8, no object: 400 and nothing is taken."""
    product = await gateway.product(5)
    bodies = [
        b"",
        b"{",
        b"[]",
        b"null",
        b"1",
        b'{"quantity":1}',
        b'{"productId":%d}}' % product,
        b'{"productId":%d,"productId":%d}' % (product, product),
        b'{"productId":%d,"quantity":1,"quantity":2}' % product,
        b'{"productId":%d,"x":%s}' % (product, b"[" * 6_000 + b"]" * 6_000),
        b'{"productId":%d,"\xff":1}' % product,
        b'{"productId":"%d"}' % product,
        b'{"productId":0}',
        b'{"productId":2147483648}',
        b'{"productId":"a\\u0000\\r\\n"}',
        *(
            orjson.dumps({"productId": product, field: 1})
            for field in ("user_id", "price", "status", "role", "Quantity", "isAdmin")
        ),
    ]
    for body in bodies:
        answer = await gateway.buy(body)
        assert answer.is_problem(400, "invalid_request"), body
        assert b"\\r" not in answer.body
    assert await gateway.available(product) == 5


@pytest.mark.parametrize("key", ["", "x" * 256, "schlüssel", "tab\there"])
async def test_a_key_that_breaks_the_rules_is_refused(gateway: GatewayClient, key: str) -> None:
    """1 to 255 printable ASCII characters, or 400."""
    product = await gateway.product(1)
    assert (await gateway.buy({"productId": product}, key)).is_problem(400, "invalid_request")
    assert await gateway.available(product) == 1


async def test_two_keys_in_one_request_are_refused(gateway: GatewayClient) -> None:
    """Which one was meant is not guessed."""
    product = await gateway.product(1)
    headers = [*gateway.bearer.items(), ("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    answer = await gateway.ask("POST", "/api/order/buy-flash", headers=headers, json={"productId": product})
    assert answer.is_problem(400, "invalid_request")
    longest = await gateway.buy({"productId": product}, "k" * 255)
    assert longest.status == 202


async def test_media_types_and_sizes_are_kept_to(gateway: GatewayClient) -> None:
    """Only plain application/json up to 16 KiB; what is larger is answered and the connection closed."""
    product = await gateway.product(5)
    body = orjson.dumps({"productId": product})
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/json; charset=latin-1",
        "application/jsonx",
    ):
        answer = await gateway.buy(body, **{"Content-Type": kind})
        assert answer.is_problem(415, "unsupported_media_type"), kind
    assert (await gateway.buy(body, **{"Content-Encoding": "gzip"})).is_problem(415, "unsupported_media_type")
    assert (await gateway.buy(body, **{"Content-Type": "Application/JSON; charset=UTF-8"})).status == 202
    large = await gateway.buy(b'{"productId":%d%s}' % (product, b" " * 16_384))
    assert large.is_problem(413, "too_large")
    assert large.headers["Connection"] == "close"
    exact = b'{"productId":%d%s}' % (product, b" " * (16_384 - len(b'{"productId":}') - len(str(product))))
    assert (await gateway.buy(exact)).status == 202


async def test_an_unknown_product_is_404_and_a_new_one_is_buyable_at_once(gateway: GatewayClient) -> None:
    """Only Postgres says that there is no product, and its word is not kept beyond the product's creation."""
    assert (await gateway.buy({"productId": 2_147_483_647})).is_problem(404, "not_found")
    product = await gateway.product(1)
    assert (await gateway.buy({"productId": product})).status == 202


async def test_before_the_sale_opens_nothing_is_sold_and_the_opening_time_is_told(gateway: GatewayClient) -> None:
    """409 sale_not_open, retryable, with opensAt as the product has it; nothing is reserved, and the key is not used up."""
    opens_at = datetime.now(UTC).replace(microsecond=123_000) + timedelta(hours=1)
    product = await gateway.product(2, opens_at=opens_at)
    told = opens_at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    assert (await gateway.ask("GET", f"/api/products/{product}")).json["opensAt"] == told
    for key in (None, "early"):
        answer = await gateway.buy({"productId": product}, key)
        assert answer.is_problem(409, "sale_not_open")
        assert (answer.json["opensAt"], answer.json["retryable"]) == (told, True)
    assert await gateway.reserved(product) == (2, 0)
    await gateway.to.redis.hset(keys.stock(product), "opens_at_ms", _now_ms() - 1)
    assert (await gateway.buy({"productId": product}, "early")).status == 202
    assert await gateway.reserved(product) == (1, 1)


async def test_after_the_sale_has_closed_nothing_is_sold_but_a_known_key_keeps_its_answer(
    gateway: GatewayClient,
) -> None:
    """409 sale_closed, not retryable, nothing reserved; who was in time and asks again is answered as before."""
    late = await gateway.product(1, closes_at=datetime.now(UTC) - timedelta(hours=1))
    assert (await gateway.buy({"productId": late})).is_problem(409, "sale_closed")
    assert await gateway.reserved(late) == (1, 0)
    product = await gateway.product(5, closes_at=datetime.now(UTC) + timedelta(hours=1))
    in_time = await gateway.buy({"productId": product}, "in time")
    assert in_time.status == 202
    await gateway.to.redis.hset(keys.stock(product), "closes_at_ms", _now_ms() - 1)
    for key in (None, "too late"):
        answer = await gateway.buy({"productId": product}, key)
        assert answer.is_problem(409, "sale_closed")
        assert answer.json["retryable"] is False
    assert (await gateway.buy({"productId": product}, "in time")).body == in_time.body
    assert await gateway.reserved(product) == (4, 1)


async def test_the_units_of_one_user_are_limited(gateway: GatewayClient) -> None:
    """The third unit of a limit of two is refused and not reserved; another buyer's is not."""
    product = await gateway.product(10, per_user_limit=2)
    assert (await gateway.buy({"productId": product, "quantity": 3})).is_problem(409, "user_limit")
    assert await gateway.reserved(product) == (10, 0)
    assert (await gateway.buy({"productId": product, "quantity": 2})).status == 202
    refused = await gateway.buy({"productId": product})
    assert refused.is_problem(409, "user_limit")
    assert refused.json["retryable"] is False
    assert await gateway.reserved(product) == (8, 1)
    assert (await gateway.another_user().buy({"productId": product})).status == 202


async def test_books_of_another_redis_run_sell_nothing(gateway: GatewayClient) -> None:
    """Closed, paused, of another run or full of held units: 503, and nothing is reserved."""
    product = await gateway.product(5)
    stock = keys.stock(product)
    redis = gateway.to.redis
    run: Any = await redis.hget(stock, "run")
    await redis.hset(stock, "run", "f" * 40)
    assert (await gateway.buy({"productId": product})).is_problem(503, "stock_not_verified")
    await redis.hset(stock, mapping={"run": run, "state": "paused"})
    assert (await gateway.buy({"productId": product})).is_problem(503, "sale_paused")
    await redis.hset(stock, mapping={"state": "open", "max_held": 0})
    assert (await gateway.buy({"productId": product})).is_problem(503, "busy")
    assert await gateway.available(product) == 5


async def test_a_user_who_buys_too_fast_is_slowed_down(settings: SigningSettings) -> None:
    """The burst is the rate of a second; the next is 429."""
    async with gateway_on(settings, buys_per_second_per_user=5) as gateway:
        product = await gateway.product(100)
        answers = await asyncio.gather(*(gateway.buy({"productId": product}) for _ in range(50)))
        refused = [answer for answer in answers if answer.status != 202]
        assert 10 < len(refused) <= 45
        assert all(answer.is_problem(429, "rate_limited") for answer in refused)
        assert await gateway.available(product) == 50 + len(refused)
        assert (await gateway.another_user().buy({"productId": product})).status == 202


async def test_where_it_is_set_an_address_that_buys_too_fast_is_slowed_down(settings: SigningSettings) -> None:
    """Whoever its users are; another address, as the trusted proxy names it, is not. Unless set there is no such limit."""
    assert settings.buys_per_second_per_address == 0
    async with gateway_on(settings, buys_per_second_per_address=1, trusted_proxies=("127.0.0.1",)) as gateway:
        product = await gateway.product(100)
        crowd = {"X-Forwarded-For": "198.51.100.1"}
        buyers = [gateway.another_user() for _ in range(20)]
        answers = await asyncio.gather(*(buyer.buy({"productId": product}, None, **crowd) for buyer in buyers))
        refused = [answer for answer in answers if answer.status != 202]
        assert 10 < len(refused) < 20
        assert all(answer.is_problem(429, "rate_limited") for answer in refused)
        assert await gateway.reserved(product) == (80 + len(refused), 20 - len(refused))
        assert (await gateway.buy({"productId": product}, None, **{"X-Forwarded-For": "198.51.100.2"})).status == 202


async def test_kafka_away_is_not_the_buyers_trouble_until_too_much_is_owed(settings: SigningSettings) -> None:
    """202 after 250 ms, then without waiting; at the bound 503, with nothing reserved; readiness only degrades."""
    async with gateway_on(settings, kafka_bootstrap_servers="127.0.0.1:9", max_unpublished=3) as gateway:
        product = await gateway.product(10)
        took_s = []
        for _ in range(3):
            started = time.monotonic()
            assert (await gateway.buy({"productId": product})).status == 202
            took_s.append(time.monotonic() - started)
        assert 0.25 <= took_s[0] < 1.0
        assert max(took_s[1:]) < 0.2
        assert (await gateway.buy({"productId": product})).is_problem(503, "busy")
        assert await gateway.available(product) == 7
        ready = await gateway.ask("GET", "/health/ready")
        assert ready.status == 200
        assert (ready.json["status"], ready.json["degraded"]) == ("degraded", ["kafka"])


def _now_ms() -> int:
    return now_ms()
