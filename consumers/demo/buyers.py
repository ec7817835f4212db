"""Buyers over HTTP: tokens and a timetable in, clicks and followed orders out, counted in a tally."""

import asyncio
import random
from dataclasses import dataclass

import msgspec

from infra.keep_alive import Answer, BrokenOff, KeepAliveClient, NotConnected, TooLarge
from schemas.order_state import TERMINAL, Status

from .sale_tally import SaleTally

TRIES = 8  # of one purchase, through 429, 503, 504 and broken connections: always with the same key
RETRY_INTERVAL_S = 2.5  # how often a patient buyer looks again whether a declined payment has put units back
WAIT_S = 20
ANSWER_WITHIN_S = 30.0
CONNECTION_ERRORS = (NotConnected, BrokenOff, TooLarge, TimeoutError)


@dataclass(frozen=True, slots=True)
class Buyer:
    """One stable identity and what it is going to do. Times are seconds from the opening."""

    token: str
    key: str
    clicks_at_s: float
    double_click: bool = False
    patient_until_s: float = 0.0  # sold out: looks again until then


class _BuyAnswer(msgspec.Struct):
    order_id: str | None = msgspec.field(default=None, name="orderId")
    code: str | None = None
    status: str | int | None = None


_answer = msgspec.json.Decoder(_BuyAnswer)


class Crowd:
    """All buyers of one product, sharing one client."""

    def __init__(self, client: KeepAliveClient, product_id: int, tally: SaleTally) -> None:
        self._client = client
        self._body = msgspec.json.encode({"productId": product_id})
        self._tally = tally
        self._opened = 0.0

    async def buy(self, buyers: list[Buyer]) -> None:
        """Every buyer's whole story; returns when the last has seen the end of its order."""
        self._opened = asyncio.get_running_loop().time()
        self._tally.buyers = len(buyers)
        async with asyncio.TaskGroup() as group:
            for buyer in buyers:
                group.create_task(self._story(buyer))

    async def _story(self, buyer: Buyer) -> None:
        await self._sleep_until(buyer.clicks_at_s)
        clicks = [self._order(buyer, buyer.clicks_at_s)]
        if buyer.double_click:
            self._tally.double_clicks += 1
            clicks.append(self._second_click(buyer))
        orders = {order for order in await asyncio.gather(*clicks) if order is not None}
        if len(orders) > 1:
            self._tally.doubled_orders += 1
        late_s = buyer.clicks_at_s
        while not orders and (late_s := max(late_s + RETRY_INTERVAL_S, self._now_s)) < buyer.patient_until_s:
            await self._sleep_until(late_s)
            order = await self._order(buyer, late_s)
            orders = {order} if order else set()
        if not orders:
            self._tally.sold_out_buyers += 1
        await asyncio.gather(*(self._follow(buyer, order) for order in orders))

    async def _second_click(self, buyer: Buyer) -> str | None:
        at_s = buyer.clicks_at_s + random.uniform(0.0, 0.15)
        await self._sleep_until(at_s)
        return await self._order(buyer, at_s)

    async def _order(self, buyer: Buyer, meant_at_s: float) -> str | None:
        """The accepted order, or None when it was refused for good."""
        for _ in range(TRIES):
            status, answer, retry_after_s = await self._click(buyer)
            if status == 202 and answer.order_id:
                if answer.order_id not in self._tally.accepted:
                    self._tally.accepted.add(answer.order_id)
                    self._tally.acknowledged_s.append(self._now_s - meant_at_s)
                return answer.order_id
            self._tally.refused[answer.code or str(status)] += 1
            if status == 409:
                return None
            if status not in (0, 429, 503, 504):
                self._tally.bad_answers.append(f"{status} {answer.code}")
                return None
            await asyncio.sleep(retry_after_s * random.uniform(1.0, 1.3))
        return None

    async def _click(self, buyer: Buyer) -> tuple[int, _BuyAnswer, float]:
        self._tally.clicks += 1
        key = f"Idempotency-Key: {buyer.key}\r\nContent-Type: application/json\r\n"
        try:
            reply = await self._ask("POST", "/api/order/buy-flash", buyer, key, self._body)
            return reply.status, _answer.decode(reply.body), float(reply.header("retry-after") or 1)
        except CONNECTION_ERRORS:
            return 0, _BuyAnswer(code="no_answer"), 0.5
        except msgspec.DecodeError:
            return 500, _BuyAnswer(code="unreadable"), 1.0

    async def _ask(self, method: str, path: str, buyer: Buyer, headers: str = "", body: bytes = b"") -> Answer:
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {self._client.host}\r\nAuthorization: Bearer {buyer.token}\r\n{headers}"
        )
        request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        return await self._client.send(request, ANSWER_WITHIN_S)

    async def _follow(self, buyer: Buyer, order_id: str) -> None:
        accepted_s = self._now_s
        while True:
            status = await self._status(buyer, order_id)
            if status is None:
                await asyncio.sleep(0.5)
                continue
            self._tally.statuses[order_id] = status
            if status in TERMINAL:
                self._tally.completed_s.append(self._now_s - accepted_s)
                return

    async def _status(self, buyer: Buyer, order_id: str) -> Status | None:
        try:
            reply = await self._ask("GET", f"/api/order/{order_id}/status?wait={WAIT_S}", buyer)
            return Status(str(_answer.decode(reply.body).status)) if reply.status == 200 else None
        except (*CONNECTION_ERRORS, msgspec.DecodeError, ValueError):
            return None

    async def _sleep_until(self, at_s: float) -> None:
        await asyncio.sleep(max(0.0, at_s - self._now_s))

    @property
    def _now_s(self) -> float:
        return asyncio.get_running_loop().time() - self._opened
