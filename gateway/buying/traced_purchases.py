"""The hot path with tracing. A worker that does not trace uses `Purchases` itself, and pays nothing."""

from aiohttp import web

from gateway.buying.purchases import Purchases
from gateway.http.problems import Problem
from infra import tracing
from infra.kafka.publisher import HEADERS
from sale.books.inventory import Held, Known, Refused, Reservation
from schemas.codec import TRACE_HEADER, Headers
from schemas.ids import OrderId


class TracedPurchases(Purchases):
    """Gives the same answers as `Purchases`. An order that is not sampled has no spans, and its record no header."""

    async def buy(self, request: web.Request) -> web.Response:
        span = None if tracing.on is None else tracing.on.sample("buy", request.headers.get(TRACE_HEADER))
        if span is None:
            return await super().buy(request)
        with span:
            try:
                return await super().buy(request)
            except Problem as problem:
                refused = problem  # a refusal is a normal answer, not an error of this step
            span.set_attributes(refused=refused.code)
        raise refused

    async def _reserve(self, reservation: Reservation) -> Held | Known | Refused:
        with tracing.step("reserve") as span:
            if span is not None:
                span.set_attributes(order_id=reservation.order_id)
            return await super()._reserve(reservation)

    async def _publish(self, order_id: OrderId, held: Held, headers: Headers = HEADERS) -> None:
        with tracing.step("publish orders") as span:
            await super()._publish(order_id, held, headers if span is None else span.headers)
