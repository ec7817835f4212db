"""Charges one order until the provider's answer is definite. Once money may have moved, it ends as `Unsettled` after 12 s.

While the provider certainly does not process the charge (429, refused connections, open breaker), the order only waits: a
dead provider fails no order. Every attempt has the same key, and no attempt is made once the provider may have forgotten the
key. So no path here charges twice.
"""

import asyncio
import time
from collections.abc import Callable

import msgspec

from infra.backoff import doubled, jittered
from infra.metrics.definitions import PROVIDER_ANSWER
from sale.orders import OrderRow
from sale.payments.breaker import CircuitBreaker
from sale.payments.provider import ASKED_FOR, Captured, ChargeOutcome, Declined, NotProcessed, PaymentProvider, Unknown
from schemas.clock import now_ms

BUDGET_S = 12.0  # from the start of the first attempt with an unknown outcome
SLOW_AFTER_S = 2.0
BACKOFF_MIN_S = 0.2
BACKOFF_MAX_S = 3.0
TOO_OLD = "older than the provider remembers keys: an operator must settle it"
READ_TOO_LONG_AGO = "read too long ago: somebody may have settled it"

_answer = {
    kind: PROVIDER_ANSWER.make().labels(name)
    for kind, name in {Captured: "captured", Declined: "declined", NotProcessed: "not_sent", Unknown: "unknown"}.items()
}


class Charge(msgspec.Struct, frozen=True):
    """The charge to request: the amount of the row, never that of the event. `age_s` returns the present age of the row."""

    order_id: str
    amount_cents: int
    currency: str
    age_s: Callable[[], float]

    @classmethod
    def of(cls, row: OrderRow) -> "Charge":
        return cls(row.id, row.total_cents, row.currency, row.age_s)

    @property
    def too_old(self) -> bool:
        """Whether the provider may have forgotten the key, whose first use is after the creation of the row."""
        return self.age_s() >= ASKED_FOR.total_seconds()


class Unsettled(msgspec.Struct, frozen=True):
    """The outcome is unknown. After the budget the reconciler continues; once the key is too old, an operator must."""

    reason: str


class Charged(msgspec.Struct, frozen=True):
    """How a charge ended. Times are wall-clock milliseconds: first attempt sent (None: none), last answer known."""

    outcome: Captured | Declined | Unsettled
    started_at_ms: int | None
    answered_at_ms: int
    attempts: int


def backoff_s(attempt: int) -> float:
    """Seconds to wait after attempt `attempt` (counted from 1): 0.1-0.2, 0.2-0.4, 0.4-0.8 ... at most 3."""
    return jittered(doubled(BACKOFF_MIN_S, attempt - 1, BACKOFF_MAX_S))


def _answered(outcome: ChargeOutcome) -> bool:
    if isinstance(outcome, NotProcessed):
        return outcome.reached
    return not isinstance(outcome, Unknown)


async def charge_once(
    provider: PaymentProvider, breaker: CircuitBreaker, charge: Charge, wanted: Callable[[], bool]
) -> ChargeOutcome | Unsettled:
    """One attempt: waits for the breaker, checks that the charge is still `wanted`, and reports the result to the breaker."""
    permit = await _permit(breaker, charge)
    if permit is None:
        return Unsettled(TOO_OLD)
    if not wanted():
        breaker.record(permit, None)
        return Unsettled(READ_TOO_LONG_AGO)
    return await _attempt(provider, breaker, permit, charge)


async def _permit(breaker: CircuitBreaker, charge: Charge) -> int | None:
    """A permit, or None if the provider may have forgotten the key during the wait: it would charge again."""
    permit = await breaker.acquire()
    if not charge.too_old:
        return permit
    breaker.record(permit, None)
    return None


async def _attempt(provider: PaymentProvider, breaker: CircuitBreaker, permit: int, charge: Charge) -> ChargeOutcome:
    answered, started = None, time.perf_counter()
    try:
        outcome = await provider.charge(charge.order_id, charge.amount_cents, charge.currency)
        answered = _answered(outcome)
        _answer[type(outcome)].observe(time.perf_counter() - started)
        return outcome
    finally:
        breaker.record(permit, answered)


async def charge_until_definite(
    provider: PaymentProvider,
    breaker: CircuitBreaker,
    charge: Charge,
    *,
    budget_s: float = BUDGET_S,
    slow_after_s: float = SLOW_AFTER_S,
    on_slow: Callable[[], None] | None = None,
    wall_ms: Callable[[], int] = now_ms,
) -> Charged:
    """Charge until the answer is definite. `on_slow` is called once, when a charge that was sent has no answer after 2 s.

    Cancelling it is safe: the order is unchanged, and the next caller uses the same key.
    """
    return await _Pursuit(provider, breaker, charge, budget_s, slow_after_s, on_slow, wall_ms).run()


class _Pursuit:
    def __init__(
        self,
        provider: PaymentProvider,
        breaker: CircuitBreaker,
        charge: Charge,
        budget_s: float,
        slow_after_s: float,
        on_slow: Callable[[], None] | None,
        wall_ms: Callable[[], int],
    ) -> None:
        self._provider, self._breaker, self._charge = provider, breaker, charge
        self._budget_s, self._slow_after_s, self._on_slow, self._wall_ms = budget_s, slow_after_s, on_slow, wall_ms
        self._loop = asyncio.get_running_loop()
        self._slow_timer: asyncio.TimerHandle | None = None
        self._deadline: float | None = None  # set at the first attempt that may have moved money
        self._reason = ""
        self._attempts = 0
        self._started_at_ms: int | None = None

    async def run(self) -> Charged:
        try:
            outcome = await self._pursue()
        finally:
            self._stop_slow_timer()
        return Charged(outcome, self._started_at_ms, self._wall_ms(), self._attempts)

    async def _pursue(self) -> Captured | Declined | Unsettled:
        while self._deadline is None:  # no attempt can have charged: the only limit is the age of the key
            outcome = await self._ask()
            if isinstance(outcome, Captured | Declined | Unsettled):
                return outcome
            await self._wait(outcome)
        try:
            async with asyncio.timeout_at(self._deadline):
                while True:
                    outcome = await self._ask()
                    if isinstance(outcome, Captured | Declined | Unsettled):
                        return outcome
                    await self._wait(outcome)
        except TimeoutError:
            return Unsettled(self._reason)

    async def _ask(self) -> ChargeOutcome | Unsettled:
        permit = await _permit(self._breaker, self._charge)
        if permit is None:
            return Unsettled(TOO_OLD)
        started = self._loop.time()
        if not self._attempts:
            self._started_at_ms = self._wall_ms()
        self._attempts += 1
        if self._slow_timer is None and self._on_slow is not None:
            self._slow_timer = self._loop.call_later(self._slow_after_s, self._report_slow)
        outcome = await _attempt(self._provider, self._breaker, permit, self._charge)
        if isinstance(outcome, Unknown):
            self._reason = outcome.reason
            if self._deadline is None:
                self._deadline = started + self._budget_s
        elif self._deadline is None:
            self._stop_slow_timer()  # answered, or never sent: the provider has no open charge
        return outcome

    async def _wait(self, outcome: NotProcessed | Unknown) -> None:
        delay_s = backoff_s(self._attempts)
        if isinstance(outcome, NotProcessed) and outcome.retry_after_s is not None:
            delay_s += outcome.retry_after_s  # a random time after the requested moment, never before it
        await asyncio.sleep(delay_s)

    def _report_slow(self) -> None:
        if self._on_slow is not None:
            on_slow, self._on_slow = self._on_slow, None
            on_slow()

    def _stop_slow_timer(self) -> None:
        if self._slow_timer is not None:
            self._slow_timer.cancel()
            self._slow_timer = None
