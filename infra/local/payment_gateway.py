"""The mock payment gateway: a real process that answers charges over HTTP, with delays and errors ("weather").

Clients may rely on this: the outcome of an idempotency key is fixed when first drawn, and on disk before it is answered.
A key is captured at most once, and asked again it gets the same answer. All else is weather, which can change at run time.
"""

import asyncio
import random
import socket
import struct
from pathlib import Path
from typing import Annotated

import msgspec
import uvloop
from aiohttp import web
from yarl import URL

from infra.lifecycle import Stop, background, stop_on_signals
from infra.local.charge_ledger import CAPTURE, DECLINE, ChargeLedger, LedgerEntry, LedgerFull
from infra.logs import configure
from infra.metrics.definitions import MOCK_CHARGES
from infra.metrics.serving import CONTENT_TYPE, exposed
from infra.metrics.vitals import report_vitals
from infra.settings import Settings, get_settings
from infra.supervision.registry import register
from schemas.clock import now_ms
from schemas.money import to_cents, to_decimal

HANG_MAX_S = 60  # then the connection is reset
LATENCY_MAX_S = 30.0
RETRY_AFTER_S = 1
BODY_MAX_BYTES = 16 * 1024
KEY_MAX_CHARS = 255
IN_FLIGHT_MAX = 50_000  # above it 503: memory stays bounded under any load
BACKLOG = 4_096  # a payment stage member opens its thousands of connections at once

_charges = MOCK_CHARGES.make()
Probability = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Weather(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Latency is log-normal. `declined` is drawn once per key, all others per attempt. Half of the hangs decide first."""

    median_ms: Annotated[float, msgspec.Meta(ge=0, le=30_000)] = 665
    sigma: Annotated[float, msgspec.Meta(ge=0, le=5)] = 0.75
    hang: Probability = 0.01
    unavailable: Probability = 0.02
    rate_limited: Probability = 0.01
    declined: Probability = 0.05
    reset_after_capture: Probability = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.hang + self.unavailable + self.rate_limited > 1:
            raise ValueError("hang + unavailable + rate_limited must not exceed 1")


class ChargeRequest(msgspec.Struct, frozen=True, rename="camel"):
    order_id: Annotated[str, msgspec.Meta(min_length=1, max_length=KEY_MAX_CHARS)]
    amount: str | int | float
    currency: Annotated[str, msgspec.Meta(pattern="^[A-Z]{3}$")]


_charge_request = msgspec.json.Decoder(ChargeRequest)


class MockGateway:
    """Weather and ledger. There is no await between looking up a key and deciding it, which serialises the key."""

    def __init__(self, ledger: ChargeLedger) -> None:
        self.ledger = ledger
        self.weather = Weather()
        self._random = random.Random()
        self._in_flight = 0

    def change_weather(self, changes: dict[str, object]) -> Weather:
        """Merge `changes` into the weather; a seed restarts the random numbers. Raises msgspec.ValidationError."""
        self.weather = msgspec.convert(msgspec.to_builtins(self.weather) | changes, Weather)
        if "seed" in changes:
            self._random = random.Random(self.weather.seed)
        return self.weather

    async def charge(self, request: web.Request) -> web.StreamResponse:
        if self._in_flight >= IN_FLIGHT_MAX:
            return _problem(503, "too many charges in flight")
        self._in_flight += 1
        try:
            answer = await self._charge(request)
        except LedgerFull as error:
            answer = _problem(503, f"ledger: {error}")
        finally:
            self._in_flight -= 1
        _charges.labels(answer.status if answer.status else "none").inc()
        return answer

    async def _charge(self, request: web.Request) -> web.StreamResponse:
        key = request.headers.get("Idempotency-Key", "")
        if not 0 < len(key) <= KEY_MAX_CHARS:
            return _problem(400, "an Idempotency-Key of 1 to 255 characters is required")
        try:
            asked = _charge_request.decode(await request.read())
            amount = _positive_amount(asked.amount)
        except ValueError as error:  # msgspec's errors are ValueErrors
            return _problem(400, str(error))
        weather, fate = self.weather, self._random.random()
        await asyncio.sleep(self._latency_s(weather))
        if (fate := fate - weather.hang) < 0:
            if self._random.random() < 0.5:
                self._decide(key, asked, amount, weather)
            return await _hang(request)
        if (fate := fate - weather.unavailable) < 0:
            return _problem(503, "unavailable")
        if fate - weather.rate_limited < 0:
            return _problem(429, "slow down", {"Retry-After": str(RETRY_AFTER_S)})
        return self._answer(request, self._decide(key, asked, amount, weather), asked, amount, weather)

    def _latency_s(self, weather: Weather) -> float:
        return min(weather.median_ms / 1000 * self._random.lognormvariate(0, weather.sigma), LATENCY_MAX_S)

    def _decide(self, key: str, asked: ChargeRequest, amount: str, weather: Weather) -> LedgerEntry:
        known = self.ledger.by_key.get(key)
        if known is not None:
            return known
        declined = self._random.random() < weather.declined
        entry = LedgerEntry(
            kind=DECLINE if declined else CAPTURE,
            key=key,
            order_id=asked.order_id,
            charge_id=None
            if declined
            else f"ch_{random.getrandbits(96):024x}",  # not from the seeded generator: it must be unique
            amount=amount,
            currency=asked.currency,
            at_ms=now_ms(),
        )
        self.ledger.record(entry)
        return entry

    def _answer(
        self, request: web.Request, entry: LedgerEntry, asked: ChargeRequest, amount: str, weather: Weather
    ) -> web.StreamResponse:
        if (entry.order_id, entry.amount, entry.currency) != (asked.order_id, amount, asked.currency):
            return _problem(422, "this key belongs to another charge")
        if entry.kind == DECLINE:
            return _json(402, {"error": "card_declined", "orderId": entry.order_id})
        if self._random.random() < weather.reset_after_capture:
            return _reset(request)
        return _json(200, {"chargeId": entry.charge_id, "orderId": entry.order_id, "amount": entry.amount})

    async def charges_of_order(self, request: web.Request) -> web.Response:
        order_id = request.match_info["order_id"]
        entries = self.ledger.of_order(order_id)
        if not entries:
            return _problem(404, "no charge is known for this order")
        captured = [entry for entry in entries if entry.kind == CAPTURE]
        status = "captured" if captured else "declined"
        charge_id = captured[0].charge_id if captured else None
        return _json(200, {"orderId": order_id, "status": status, "chargeId": charge_id, "charges": entries})

    async def captures(self, _request: web.Request) -> web.Response:
        body = await asyncio.to_thread(self.ledger.captures_json)
        return web.Response(body=body, content_type="application/json", headers={"Declines": str(self.ledger.declines)})

    async def health(self, _request: web.Request) -> web.Response:
        counts = {"captures": self.ledger.captures, "declines": self.ledger.declines, "inFlight": self._in_flight}
        return _json(200, {"status": "ok", **counts})

    async def metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=exposed(), headers={"Content-Type": CONTENT_TYPE})

    async def show_weather(self, _request: web.Request) -> web.Response:
        return _json(200, self.weather)

    async def put_weather(self, request: web.Request) -> web.Response:
        try:
            changes = msgspec.json.decode(await request.read(), type=dict[str, object])
            return _json(200, self.change_weather(changes))
        except ValueError as error:
            return _problem(400, str(error))


def _positive_amount(amount: str | float) -> str:
    cents = to_cents(str(amount))
    if cents == 0:
        raise ValueError("the amount must be positive")
    return to_decimal(cents)


def _json(status: int, body: object) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(body), content_type="application/json")


def _problem(status: int, detail: str, headers: dict[str, str] | None = None) -> web.Response:
    body = msgspec.json.encode({"error": detail})
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)


async def _hang(request: web.Request) -> web.StreamResponse:
    for _ in range(HANG_MAX_S):
        if request.transport is None:  # the client has gone away
            break
        await asyncio.sleep(1)
    return _reset(request)


def _reset(request: web.Request) -> web.StreamResponse:
    if request.transport is not None:
        peer: socket.socket = request.transport.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close with RST, not FIN
        request.transport.abort()
    return web.Response(status=503)  # never sent: the connection is closed


def make_app(gateway: MockGateway) -> web.Application:
    app = web.Application(client_max_size=BODY_MAX_BYTES)
    app.router.add_post("/charges", gateway.charge)
    app.router.add_get("/charges/{order_id}", gateway.charges_of_order)
    app.router.add_get("/ledger", gateway.captures)
    app.router.add_get("/health", gateway.health)
    app.router.add_get("/metrics", gateway.metrics)
    app.router.add_get("/weather", gateway.show_weather)
    app.router.add_put("/weather", gateway.put_weather)
    return app


async def serve(port: int, ledger_path: Path, stop: Stop, address: str = "127.0.0.1") -> None:
    """Serve `address`:`port` until `stop`. It reads the ledger first, so a restart keeps all decisions."""
    ledger = ChargeLedger(ledger_path)
    runner = web.AppRunner(make_app(MockGateway(ledger)), access_log=None, shutdown_timeout=2, keepalive_timeout=30)
    await runner.setup()
    try:
        await web.TCPSite(runner, address, port, backlog=BACKLOG).start()
        async with background(report_vitals()):
            await stop.wait()
    finally:
        await runner.cleanup()
        ledger.close()


def run(settings: Settings) -> None:
    """Run `thrones payment-gateway` until a signal: port of PAYMENT_GATEWAY_URL, ledger under THRONES_STATE_DIR."""
    configure("payment-gateway", settings.thrones_member)
    port = URL(settings.payment_gateway_url).port
    if port is None:
        raise SystemExit(f"PAYMENT_GATEWAY_URL names no port: {settings.payment_gateway_url}")
    register("payment-gateway", settings.thrones_member, port, state_dir=settings.thrones_state_dir)
    uvloop.run(_serve_until_signal(settings, port))


async def _serve_until_signal(settings: Settings, port: int) -> None:
    ledger_path = settings.thrones_state_dir / "payments" / "ledger.jsonl"
    await serve(port, ledger_path, stop_on_signals(), settings.listen_address)


if __name__ == "__main__":
    run(get_settings())
