"""POST /api/order/buy-flash: reserves units in Redis and publishes the order on the log.

202 is a promise that survives this process. It is given after the reservation, even if the publish fails: from the held
entry in Redis the relay can finish it. 503 and every 4xx mean that nothing was reserved; 504 that the outcome is unknown.
"""

import asyncio
import time
from typing import Annotated

import msgspec
from aiohttp import web
from msgspec import UNSET, Meta, UnsetType
from redis.exceptions import BusyLoadingError, ResponseError

from gateway.accounts.identity import Identity
from gateway.buying.admission import Overload, RateLimit, SoldOutMemory, UnderWay
from gateway.buying.catalogue import Catalogue, Product
from gateway.buying.expected_wait import ExpectedWait
from gateway.buying.memory_budget import MemoryBudget
from gateway.http.addresses import Addresses
from gateway.http.bodies import REPLAYED, answer_bytes, duplicate_member, iso_ms, read_json, reason, repeated_member
from gateway.http.problems import Problem
from gateway.http.slow_bodies import SlowBodies
from infra.kafka.publisher import HEADERS, Publisher
from infra.metrics.definitions import (
    GATEWAY_ACCEPTED,
    GATEWAY_ACKNOWLEDGED,
    GATEWAY_OUTCOME_UNKNOWN,
    GATEWAY_PUBLISH_TIMEOUTS,
)
from infra.redis.client import RedisError
from infra.redis.pipeliner import NotSent
from infra.settings import Settings
from sale.books.inventory import Held, Inventory, Known, Refused, Reservation
from sale.books.key_record import key_hash
from schemas import topics
from schemas.codec import Headers
from schemas.ids import OrderId, ProductId, new_order_id

PUBLISH_WAIT_S = 0.25
KEY_MAX_CHARACTERS = 255
DEFINITE = (
    ResponseError,
    BusyLoadingError,
    NotSent,
)  # Redis answered with an error, or was never reached: nothing was reserved

REFUSALS = {
    "unverified": "stock_not_verified",
    "paused": "sale_paused",
    "not_open": "sale_not_open",
    "closed": "sale_closed",
    "user_limit": "user_limit",
    "declined": "rate_limited",
    "busy": "busy",
    "sold_out": "sold_out",
}

DECLINED_TOO_OFTEN = "Too many of your payments for this product were declined within the hour."

Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]


class BuyFlash(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """The body. We know prices, users and states ourselves: any other member is refused."""

    productId: Positive
    quantity: Positive | UnsetType = UNSET


_decoder = msgspec.json.Decoder(BuyFlash)
_accepted, _acknowledged = GATEWAY_ACCEPTED.make(), GATEWAY_ACKNOWLEDGED.make()
_outcome_unknown, _publish_timeouts = GATEWAY_OUTCOME_UNKNOWN.make(), GATEWAY_PUBLISH_TIMEOUTS.make()


def decode_purchase(body: bytes) -> tuple[ProductId, int]:
    """Product and quantity. Raises Problem 400."""
    try:
        purchase = _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Problem("invalid_request", f"The body cannot be read: {reason(error)}.") from None
    # Both members are numbers, so each colon belongs to a member: more colons than members mean that one occurs twice.
    if body.count(b":") != (1 if purchase.quantity is UNSET else 2):
        raise duplicate_member(repeated_member(body))
    return ProductId(purchase.productId), 1 if purchase.quantity is UNSET else purchase.quantity


def idempotency_key(request: web.Request) -> str | None:
    """The one Idempotency-Key of a request, or None. Raises Problem 400."""
    given = request.headers.getall("Idempotency-Key", None)
    if given is None:
        return None
    key = given[0]
    if len(given) > 1 or not 1 <= len(key) <= KEY_MAX_CHARACTERS or not (key.isascii() and key.isprintable()):
        raise Problem("invalid_request", "Idempotency-Key is one header of 1 to 255 printable ASCII characters.")
    return key


class Purchases:
    """The hot path. One instance per worker."""

    def __init__(
        self,
        settings: Settings,
        identity: Identity,
        addresses: Addresses,
        bodies: SlowBodies,
        catalogue: Catalogue,
        inventory: Inventory,
        publisher: Publisher,
        memory: MemoryBudget,
        expected_wait: ExpectedWait,
    ) -> None:
        self._identity = identity
        self._bodies = bodies
        self._catalogue = catalogue
        self._inventory = inventory
        self._publisher = publisher
        self._memory = memory
        self._expected_wait = expected_wait
        self._rates = RateLimit(settings.buys_per_second_per_user)
        per_address = settings.buys_per_second_per_address
        self._address_rates = RateLimit(per_address) if per_address else None
        self._addresses = addresses
        self._sold_out = SoldOutMemory()
        self._under_way = UnderWay()
        self._most_declines = settings.declines_per_hour_per_user
        self._max_unpublished = settings.max_unpublished
        self._kafka_slow = False  # the last publish timed out: do not wait again until one is acknowledged

    async def buy(self, request: web.Request) -> web.Response:
        started = time.perf_counter()
        user = self._identity.user_of(request)
        if not self._rates.take(user.id):
            raise Problem("rate_limited")
        if self._address_rates and not self._address_rates.take(self._addresses.of(request)):
            raise Problem("rate_limited")
        key = idempotency_key(request)
        product_id, quantity = decode_purchase(await read_json(request, self._bodies, user.id))
        product = self._catalogue.cached(product_id) or await self._catalogue.find(product_id)
        if quantity > product.max_quantity:
            raise Problem(
                "invalid_request", f"One order may have at most {product.max_quantity} units of this product."
            )
        if key is None and self._sold_out.covers(product_id, quantity):
            raise Problem("sold_out")
        if self._publisher.unpublished >= self._max_unpublished:
            raise Problem("busy")
        if self._memory.full:
            raise Problem("unavailable", "There is no room for more orders now; nothing was reserved.")
        self._expected_wait.admit()
        reservation = Reservation(
            order_id=new_order_id(),
            user_id=user.id,
            product_id=product_id,
            quantity=quantity,
            unit_price_cents=product.price_cents,
            currency=product.currency,
            hashed_key=None if key is None else key_hash(key),
            most_declines=self._most_declines,
        )
        try:
            with self._under_way.hold():  # only now: reading the body depended on the client
                order_id = await self._place(reservation)
        except Overload:
            raise Problem("busy") from None
        _accepted.inc()
        _acknowledged.observe(time.perf_counter() - started)
        return accepted(product, order_id, replayed=order_id != reservation.order_id)

    async def _place(self, reservation: Reservation) -> OrderId:
        """The id of the order for this request: its own, or the one for which its key was accepted before."""
        asked_at = time.monotonic()
        match await self._reserve(reservation):
            case Held() as held:
                self._sold_out.accepted(reservation.product_id, held.epoch, held.version)
                await self._publish(reservation.order_id, held)
                return reservation.order_id
            case Known(order_id, same_body):
                if not same_body:
                    raise Problem("key_reused")
                return order_id
            case Refused() as refused:
                if refused.reason == "sold_out":
                    self._sold_out.refused(
                        reservation.product_id, reservation.quantity, refused.epoch, refused.version, asked_at
                    )
                raise _refusal(refused)

    async def _reserve(self, reservation: Reservation) -> Held | Known | Refused:
        try:
            return await self._inventory.reserve(reservation)
        except DEFINITE:
            raise Problem("unavailable") from None
        except RedisError:
            pass  # the reply is lost: the script may have run, or may still run
        try:
            second = await self._inventory.reserve(reservation)
        except RedisError:
            second = Refused("unknown")
        if isinstance(second, Refused):  # says nothing about the first attempt, which may still run
            _outcome_unknown.inc()
            raise Problem(
                "outcome_unknown",
                headers={"Location": f"/api/order/{reservation.order_id}/status"},
                orderId=reservation.order_id,
            )
        return second

    async def _publish(self, order_id: OrderId, held: Held, headers: Headers = HEADERS) -> None:
        """Publish the record and wait briefly for its acknowledgement. If it does not come, the relay finishes."""
        acknowledged = self._publisher.publish(topics.ORDERS, order_id, held.value, headers)
        acknowledged.add_done_callback(self._acknowledged)
        if self._kafka_slow:
            return
        await asyncio.wait((acknowledged,), timeout=PUBLISH_WAIT_S)  # wait() does not cancel the publish
        if not acknowledged.done():
            self._kafka_slow = True
            _publish_timeouts.inc()

    def _acknowledged(self, publish: "asyncio.Future[None]") -> None:
        if not publish.cancelled() and publish.exception() is None:
            self._kafka_slow = False


def accepted(product: Product, order_id: OrderId, *, replayed: bool = False) -> web.Response:
    before, between, after = product.accepted
    id_bytes = order_id.encode()
    body = b"".join((before, id_bytes, between, id_bytes, after))
    more = {"Location": f"/api/order/{order_id}/status"}
    return answer_bytes(body, 202, more | REPLAYED if replayed else more)


def _refusal(refused: Refused) -> Problem:
    code = REFUSALS[refused.reason]
    if refused.reason == "declined":
        return Problem(code, DECLINED_TOO_OFTEN, retry_after_s=max(1, -(-refused.wait_ms // 1000)))
    if refused.opens_at_ms:
        return Problem(code, opensAt=iso_ms(refused.opens_at_ms))
    return Problem(code)
