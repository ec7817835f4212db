"""One user of a load test: views the product, thinks, buys, and follows the order to its end; records the sale's metrics."""

import itertools
import random
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from geventhttpclient.response import HTTPConnectionClosed
from locust import FastHttpUser, task
from locust.contrib.fasthttp import ResponseContextManager
from locust.env import Environment

from bench.client_log import Answered, ClientLog
from bench.own_stack import claims, own_url, read_tokens
from bench.sale_metrics import Attendance, SaleMetrics
from bench.sale_result import ENDS
from bench.shapes import SHAPES, Shape
from schemas.clock import now_ms

FOLLOW_S = 60.0  # then the user gives up on an order
WAIT_S = 25  # the maximum of `?wait=`
POLL_INTERVAL_S = 1.0
TRIES = 3  # per purchase, with one key, while its outcome is unknown
TERMINAL = ENDS.keys()
UNKNOWN = {0, 502, 504}  # the order may have been accepted
CHARGE_BEGINS = ("processing_payment", "awaiting_payment")


class Sale:
    """State shared by all users of this load-generator process."""

    def __init__(self, environment: Environment) -> None:
        options: Any = environment.parsed_options
        self.options = options
        self.metrics = SaleMetrics(environment)
        self.attendance = Attendance()
        self.log = ClientLog(options.client_log)
        tokens = read_tokens(Path(options.tokens)) if options.tokens else []
        random.shuffle(tokens)  # several load generators read one file
        self.tokens: Iterator[str] = itertools.cycle(tokens)
        self.said_s = 0.0

    @property
    def shape(self) -> Shape:
        options = self.options
        return SHAPES[options.shape].scaled(float(options.time_scale), float(options.crowd))


_sales: dict[int, Sale] = {}  # by environment: locust has one, its tests several


def open_sale(environment: Environment) -> None:
    _sales[id(environment)] = Sale(environment)


def sale_of(environment: Environment) -> Sale:
    return _sales[id(environment)]


class FlashSaleUser(FastHttpUser):
    """A user with a token who buys one unit again and again."""

    host = own_url()
    connection_timeout = 10.0
    network_timeout = WAIT_S + 10.0

    def on_start(self) -> None:
        self.sale = sale_of(self.environment)
        token = next(self.sale.tokens)
        self.user_id = int(claims(token)["sub"])
        self.bearer = {"Authorization": f"Bearer {token}"}
        self.think_s = float(self.sale.options.think)
        self.product = int(self.sale.options.product)

    @task
    def buy_one(self) -> None:
        self._think()
        self._view_product()
        self._think()
        clicked_s = time.monotonic()
        order = self._buy()
        if order is not None:
            self._follow(order, clicked_s)

    def _think(self) -> None:  # locust has made time.sleep cooperative
        """The lateness of its end is the load generator's own delay."""
        due_s = time.monotonic() + self.think_s
        time.sleep(self.think_s)
        self.sale.metrics.record("generator_late", (time.monotonic() - due_s) * 1000)

    def _view_product(self) -> None:
        with self._ask("GET", f"/api/products/{self.product}", "/api/products/[id]") as answer:
            self._judge(answer)

    def _buy(self) -> str | None:
        """The order id, or None: sold out, refused, or unknown."""
        key = uuid.uuid4().hex
        for _ in range(TRIES):
            status, order = self._click(key)
            if status not in UNKNOWN:
                return order
        self.sale.metrics.record("unknown_outcomes")
        return None

    def _click(self, key: str) -> tuple[int, str | None]:
        started_s = time.monotonic()
        path = "/api/order/buy-flash"
        with self._ask("POST", path, path, json={"productId": self.product}, key=key) as answer:
            ms = (time.monotonic() - started_s) * 1000
            body = _read(answer)
            status, code, order = answer.status_code, str(body.get("code", "")), body.get("orderId")
            answer.request_meta["name"] = f"{path} ({_kind(status, code)})"
            if status == 202 and order:
                self.sale.metrics.record("successful_purchases", ms)
                answer.success()
            elif code == "sold_out":
                self.sale.metrics.record("out_of_stock_409", ms)
                answer.success()
            else:
                self._refused(answer, code, ms)
        outcome = "A" if status == 202 else "U" if status in UNKNOWN else "R"
        self.sale.log.add(
            Answered(
                at_ms=now_ms(),
                user=self.user_id,
                product=self.product,
                key=key,
                order=order,
                outcome=outcome,
                status=status,
                code=code,
                latency_ms=round(ms, 2),
            )
        )
        return status, order if status == 202 else None

    def _refused(self, answer: ResponseContextManager, code: str, ms: float) -> None:
        metrics, status = self.sale.metrics, answer.status_code
        if status == 429:
            metrics.record("slow_down_429", ms)
            answer.success()
        elif status == 409:  # user_limit, sale_not_open, sale_closed: rules of the sale
            metrics.record("other_refusals", ms)
            answer.success()
        else:
            if status == 503:
                metrics.record("busy_503", ms)
            self._judge(answer, code)

    def _follow(self, order: str, clicked_s: float) -> None:
        """Wait until the end of the order is seen. In all modes the time is that of the buyer."""
        how = {"wait": self._wait, "poll": self._poll, "stream": self._stream}[self.sale.options.follow]
        end, charged_ms = how(order, clicked_s + FOLLOW_S)
        self.sale.metrics.record(ENDS[end], (time.monotonic() - clicked_s) * 1000)
        if end == "unseen":
            return
        self.sale.metrics.record("total_order_time", (time.monotonic() - clicked_s) * 1000)
        if charged_ms is not None:
            self.sale.metrics.record("payment_processing_time", charged_ms)

    def _wait(self, order: str, until_s: float) -> tuple[str, float | None]:
        return self._ask_until(order, until_s, f"?wait={WAIT_S}", "?wait=", 0.0)

    def _poll(self, order: str, until_s: float) -> tuple[str, float | None]:
        return self._ask_until(order, until_s, "", "", POLL_INTERVAL_S)

    def _ask_until(
        self, order: str, until_s: float, query: str, shown: str, pause_s: float
    ) -> tuple[str, float | None]:
        while time.monotonic() < until_s:
            time.sleep(pause_s)
            path = f"/api/order/{order}/status"
            with self._ask("GET", path + query, f"/api/order/[id]/status{shown}") as answer:
                self._judge(answer)
                body, known = _read(answer), answer.status_code == 200
            if known and body.get("status") in TERMINAL:
                steps = {step["status"]: _ms(step["at"]) for step in body.get("history", [])}
                return str(body["status"]), _charged_ms(steps, str(body["status"]))
            if not known:
                time.sleep(POLL_INTERVAL_S)
        return "unseen", None

    def _stream(self, order: str, until_s: float) -> tuple[str, float | None]:
        """Read the order's event stream, and reopen it if it breaks off."""
        steps: dict[str, float] = {}
        while time.monotonic() < until_s:
            path, shown = f"/sse/order/{order}", "/sse/order/[id]"
            with self._ask("GET", path, shown, stream=True, closing=True) as answer:
                self._judge(answer)
                for event in _events(answer):
                    steps[event["status"]] = _ms(event["updatedAt"])
                    if event["status"] in TERMINAL:
                        return event["status"], _charged_ms(steps, event["status"])
                    if time.monotonic() > until_s:
                        break
            time.sleep(POLL_INTERVAL_S)
        return "unseen", None

    @contextmanager
    def _ask(
        self, method: str, path: str, name: str, *, key: str = "", closing: bool = False, **options: Any
    ) -> Iterator[ResponseContextManager]:
        headers = dict(self.bearer)
        if key:
            headers["Idempotency-Key"] = key
        if closing:  # a stream left in its middle must not lend its connection to the next request
            headers["Connection"] = "close"
        with self.client.request(method, path, name=name, headers=headers, catch_response=True, **options) as answer:
            yield answer

    def _judge(self, answer: ResponseContextManager, code: str = "") -> None:
        """All answers except 200 and 202 are failures; above 499, or without an answer, server errors."""
        status = answer.status_code
        if status in (200, 202):
            answer.success()
            return
        if status == 0 or status >= 500:
            self.sale.metrics.record("server_errors")
        why = f"no answer: {getattr(answer, 'error', None)}" if status == 0 else f"{status} {code}".rstrip()
        answer.failure(why)


def _read(answer: ResponseContextManager) -> dict[str, Any]:
    try:
        body = msgspec.json.decode(answer.content or b"{}")
    except msgspec.DecodeError:
        return {}
    return body if isinstance(body, dict) else {}


def _kind(status: int, code: str) -> str:
    """The kind of answer: separate, so that quick refusals do not improve the times of accepted orders."""
    return "202 accepted" if status == 202 else f"{status} {code}".rstrip() if status else "no answer"


def _events(answer: ResponseContextManager) -> Iterator[dict[str, Any]]:
    """The data of an event stream as it arrives; ends when the stream ends for any reason."""
    stream = answer._response  # noqa: SLF001 # locust's own iter_lines waits for whole blocks, not lines
    if stream is None or answer.status_code != 200:
        return
    try:
        while line := bytes(stream.readline(b"\n")):
            if line.startswith(b"data:"):
                yield msgspec.json.decode(line[5:])
    except (OSError, HTTPConnectionClosed):
        return
    finally:
        stream.release()


def _ms(at: str) -> float:
    return datetime.fromisoformat(at).timestamp() * 1000


def _charged_ms(steps: dict[str, float], end: str) -> float | None:
    """From the start of the payment, if it was seen, to the end of the order."""
    begun = next((steps[status] for status in CHARGE_BEGINS if status in steps), None)
    return None if begun is None or end not in ("confirmed", "payment_failed") else steps[end] - begun
