"""Sends charges to the payment provider. An outcome is captured, declined, not processed, or unknown; it is never guessed.

The order id is the provider's idempotency key, so a repeated charge cannot charge twice.
"""

import asyncio
import time
from datetime import timedelta
from decimal import Decimal, InvalidOperation
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Protocol, Self

import msgspec
from yarl import URL

from infra import tracing
from infra.keep_alive import BrokenOff, KeepAliveClient, KeepAlivePost, NotConnected, TooLarge
from infra.logs import REPEAT_AFTER_S, get_logger
from infra.text import cleaned, is_storable
from schemas.codec import TRACE_HEADER
from schemas.money import to_cents, to_decimal

ATTEMPT_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 2.0
ANSWER_MAX_BYTES = 64 * 1024
CHARGE_ID_MAX = 255  # characters, all printable: the charge is looked up by it, so it must be stored completely
REASON_MAX = 100  # characters of a decline's reason, for people: unprintable ones are replaced
RETRY_AFTER_MAX_S = 60.0
KEY_LIFETIME = timedelta(hours=24)  # how long the provider remembers a key, from its first use
ASKED_FOR = KEY_LIFETIME - timedelta(minutes=10)  # from the creation of the row: clocks differ, and requests take time
IDLE_CONNECTION_S = 20.0  # less than the provider's keep-alive: else its close could meet our next request

log = get_logger()


class Captured(msgspec.Struct, frozen=True):
    """The provider confirmed that it took the money, for this order and this amount."""

    charge_id: str


class Declined(msgspec.Struct, frozen=True):
    """The provider refused permanently (402)."""

    reason: str


class NotProcessed(msgspec.Struct, frozen=True):
    """Certainly not processed: 429, or no connection was made. `retry_after_s` comes from the provider."""

    retry_after_s: float | None
    reached: bool  # False if no connection was made


class Unknown(msgspec.Struct, frozen=True):
    """The money may have been taken. Only a definite answer to the same key resolves it."""

    reason: str


Definite = Captured | Declined
ChargeOutcome = Captured | Declined | NotProcessed | Unknown


class PaymentProvider(Protocol):
    """Takes money for orders."""

    async def charge(self, order_id: str, amount_cents: int, currency: str) -> ChargeOutcome:
        """One attempt of at most 5 s. It raises only CancelledError."""


class HttpPaymentProvider:
    """The provider over HTTP (`async with`). Follows no redirect, limits the answer's size, checks it against the charge."""

    def __init__(self, base_url: str, attempt_timeout_s: float = ATTEMPT_TIMEOUT_S) -> None:
        url = URL(base_url) / "charges"
        self._client = KeepAliveClient(
            url, connect_timeout_s=CONNECT_TIMEOUT_S, idle_s=IDLE_CONNECTION_S, body_max_bytes=ANSWER_MAX_BYTES
        )
        self._charges = KeepAlivePost(
            self._client, url, {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        )
        self._attempt_timeout_s = attempt_timeout_s
        self._told_at = -REPEAT_AFTER_S

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    async def charge(self, order_id: str, amount_cents: int, currency: str) -> ChargeOutcome:
        question = _encoder.encode(_Question(order_id, to_decimal(amount_cents), currency))
        try:
            async with asyncio.timeout(self._attempt_timeout_s):
                answer = await self._charges.ask(question, _headers(order_id))
        except NotConnected as error:
            self._log_unreachable(str(error))
            return NotProcessed(None, reached=False)
        except TimeoutError:
            return Unknown("timeout")
        except TooLarge:
            return Unknown("answer too large")
        except BrokenOff as error:
            return Unknown(str(error))
        return read_answer(answer.status, answer.header("retry-after"), answer.body, order_id, amount_cents)

    def _log_unreachable(self, reason: str) -> None:
        """Log a refused connection or a TLS error at most once every few seconds, not once per order."""
        now = time.monotonic()
        if now - self._told_at >= REPEAT_AFTER_S:
            self._told_at = now
            log.warning("the payment provider is not reached", to=self._client.host, reason=cleaned(reason, 300))


def _headers(order_id: str) -> str:
    headers = f"Idempotency-Key: {order_id}\r\n"
    if (span := tracing.current()) is not None:
        headers += f"{TRACE_HEADER}: {span.traceparent}\r\n"
    return headers


class _Question(msgspec.Struct, frozen=True, rename="camel"):
    order_id: str
    amount: str
    currency: str


class _Receipt(msgspec.Struct, frozen=True, rename="camel"):
    charge_id: str
    order_id: str
    amount: msgspec.Raw  # a string or a number, parsed exactly: a double would round


class _Refusal(msgspec.Struct, frozen=True, rename="camel"):
    error: str = "declined"
    order_id: str | None = None


_encoder = msgspec.json.Encoder()
_receipt = msgspec.json.Decoder(_Receipt)
_refusal = msgspec.json.Decoder(_Refusal)
_text = msgspec.json.Decoder(str)


def read_answer(status: int, retry_after: str | None, body: bytes, order_id: str, amount_cents: int) -> ChargeOutcome:
    """The outcome that an HTTP answer means for the charge of `amount_cents` for `order_id`. Pure."""
    if status == 200:
        return _captured(body, order_id, amount_cents)
    if status == 402:
        return _declined(body, order_id)
    if status == 429:
        return NotProcessed(_seconds(retry_after), reached=True)
    return Unknown(f"status {status}")


def _captured(body: bytes, order_id: str, amount_cents: int) -> ChargeOutcome:
    try:
        receipt = _receipt.decode(body)
        right = _is_amount(receipt.amount, amount_cents)
    except (ValueError, RecursionError, InvalidOperation):
        return Unknown("unreadable receipt")
    if receipt.order_id != order_id:
        return Unknown("receipt of another order")
    if not right:
        return Unknown("receipt over another amount")
    if not is_storable(receipt.charge_id, CHARGE_ID_MAX):
        return Unknown("receipt without a charge id that can be kept")
    return Captured(receipt.charge_id)


def _is_amount(said: msgspec.Raw, cents: int) -> bool:
    """Raises ValueError or InvalidOperation if it is not an amount."""
    text = bytes(said).decode()
    if text.startswith('"'):
        return to_cents(_text.decode(said)) == cents
    return Decimal(text) == Decimal(cents) / 100


def _declined(body: bytes, order_id: str) -> ChargeOutcome:
    try:
        refusal = _refusal.decode(body)
    except (ValueError, RecursionError):
        return Declined("declined")  # the status alone is definite; the body only has to name the same order
    if refusal.order_id is not None and refusal.order_id != order_id:
        return Unknown("refusal of another order")
    return Declined(cleaned(refusal.error, REASON_MAX) or "declined")


def _seconds(retry_after: str | None) -> float | None:
    """Both forms of RFC 9110 section 10.2.3, limited; None if it is neither."""
    if retry_after is None:
        return None
    if retry_after.isascii() and retry_after.isdigit():
        return min(float(retry_after), RETRY_AFTER_MAX_S)
    try:
        wait_s = parsedate_to_datetime(retry_after).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return min(max(wait_s, 0.0), RETRY_AFTER_MAX_S)
