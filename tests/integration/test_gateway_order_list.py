"""A user's own orders, page by page: accepted ones from the first moment, stored ones, each once, newest first."""

from typing import Any

from infra.settings import SigningSettings
from sale.books import keys
from sale.books.inventory import Inventory
from sale.orders import place_rows
from schemas.clock import now_ms
from schemas.codec import decode
from schemas.events import OrderPlaced, OrderStatusChanged, Step
from schemas.ids import OrderId, ProductId, UserId
from schemas.order_state import Status

from .gateway_fixtures import GatewayClient, gateway, gateway_on, settings

__all__ = ["gateway", "settings"]


async def bought(gateway: GatewayClient, product: ProductId, times: int) -> list[str]:
    """Order ids, oldest first."""
    return [(await gateway.buy({"productId": product})).json["orderId"] for _ in range(times)]


async def page(gateway: GatewayClient, query: str = "") -> dict[str, Any]:
    answer = await gateway.ask("GET", f"/api/orders{query}", headers=gateway.bearer)
    assert answer.status == 200, answer.body
    found: dict[str, Any] = answer.json
    return found


def ids(page: dict[str, Any]) -> list[str]:
    return [order["orderId"] for order in page["orders"]]


async def store(gateway: GatewayClient, product: ProductId, order_id: str, *, announced: bool = True) -> None:
    """What the order stage does, and then the projector."""
    line: Any = await gateway.to.redis.hget(keys.held(product), order_id)
    event = decode(_placed(line))
    assert isinstance(event, OrderPlaced)
    await place_rows(gateway.to.pool, [event], vouched=True)
    if announced:
        await announce(gateway, event)


async def announce(gateway: GatewayClient, event: OrderPlaced) -> None:
    at_ms = now_ms()
    news = OrderStatusChanged(
        order_id=event.order_id,
        product_id=event.product_id,
        user_id=event.user_id,
        quantity=event.quantity,
        total_cents=event.unit_price_cents * event.quantity,
        currency=event.currency,
        status=Status.AWAITING_PAYMENT,
        placed_at_ms=event.placed_at_ms,
        at_ms=at_ms,
        steps=(Step(Status.AWAITING_PAYMENT, at_ms),),
    )
    await Inventory(gateway.to.redis).project([news])


def _placed(line: bytes) -> bytes:
    from sale.books.entry import parse

    return parse(OrderId("-"), line).placed_value


async def test_an_accepted_order_is_shown_before_it_is_stored_and_once_when_it_is(gateway: GatewayClient) -> None:
    """From Redis, then from both, then from Postgres alone; the same facts throughout."""
    product = await gateway.product(9)
    oldest, middle, newest = await bought(gateway, product, 3)
    shown = await page(gateway)
    assert ids(shown) == [newest, middle, oldest]
    first = shown["orders"][0]
    assert (first["status"], first["quantity"], first["totalPrice"]) == ("queued", 1, "19.99")
    assert shown["next"] is None
    assert shown["newest"] == newest
    await store(gateway, product, middle, announced=False)
    assert ids(await page(gateway)) == [newest, middle, oldest]
    for order_id in (oldest, middle, newest):
        await store(gateway, product, order_id)
    stored = await page(gateway)
    assert ids(stored) == [newest, middle, oldest]
    assert stored["orders"][0]["status"] == "awaiting_payment"
    assert await gateway.to.redis.exists(keys.unstored(UserId(gateway.user_id))) == 0, "nothing is left of it"
    assert ids(await page(gateway.another_user())) == []


async def test_a_walk_meets_every_order_once_and_is_told_of_newer_ones(gateway: GatewayClient) -> None:
    """Pages hold stored and unstored orders in one order; what comes while somebody walks does not move the walk."""
    product = await gateway.product(50)
    orders = await bought(gateway, product, 7)
    for order_id in orders[:4:2]:
        await store(gateway, product, order_id)
    walked: list[str] = []
    shown = await page(gateway, "?limit=2")
    began_at = shown["newest"]
    assert began_at == orders[-1]
    while True:
        walked += ids(shown)
        if shown["next"] is None:
            break
        assert shown["next"] == walked[-1]
        if len(walked) == 2:
            [later] = await bought(gateway, product, 1)
            await store(gateway, product, orders[4])
        shown = await page(gateway, f"?limit=2&cursor={shown['next']}")
        assert shown["newest"] == later
    assert walked == orders[::-1]
    assert ids(await page(gateway))[0] == later
    assert (await page(gateway, f"?cursor={orders[0]}"))["orders"] == []
    nobody = await page(gateway.another_user())
    assert (nobody["orders"], nobody["next"], nobody["newest"]) == ([], None, None)


async def test_without_redis_the_stored_orders_are_shown(gateway: GatewayClient, settings: SigningSettings) -> None:
    product = await gateway.product(9)
    stored, unstored = await bought(gateway, product, 2)
    await store(gateway, product, stored)
    async with gateway_on(settings, redis_url="redis://127.0.0.1:9/0") as blind:
        blind.user_id, blind.token = gateway.user_id, gateway.token
        assert ids(await page(blind)) == [stored]
    assert ids(await page(gateway)) == [unstored, stored]
