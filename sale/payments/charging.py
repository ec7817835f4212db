"""One order in, a definite answer of the provider out - or, only once money may have moved, `Unsettled` after a budget.

While the provider is certainly not processing us (429, refused connections, breaker open) the order just waits: a dead
provider fails nobody. Every attempt carries the same key, and none is made once the provider may have forgotten it, however
long the wait was: so no path through here charges twice.
"""

import asyncio
import random
import time
from collections.abc import Callable

import msgspec

from infra.metrics.definitions import PROVIDER_ANSWER
from sale.orders import OrderRow
from sale.payments.breaker import CircuitBreaker
from sale.payments.provider import ASKED_FOR, Captured, ChargeOutcome, Declined, NotProcessed, PaymentProvider, Unknown
from schemas.clock import now_ms

BUDGET_S = 12.0  # from the start of the first attempt whose outcome is unknown
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
    """What is asked of the provider: the row's amount, never the event's. `age_s` says how old the row is now."""

    order_id: str
    amount_cents: int
    currency: str
    age_s: Callable[[], float]

    @classmethod
    def of(cls, row: OrderRow) -> "Charge":
        return cls(row.id, row.total_cents, row.currency, row.age_s)

    @property
    def too_old(self) -> bool:
        """The provider may have forgotten the key, which is first used after the row was created."""
        return self.age_s() >= ASKED_FOR.total_seconds()


class Unsettled(msgspec.Struct, frozen=True):
    """The outcome is unknown, and the budget is spent (the reconciler's) or the key too old (an operator's)."""

    reason: str


class Charged(msgspec.Struct, frozen=True):
    """How a charge ended. Times are wall-clock milliseconds: first attempt sent (None: none was), last word known."""

    outcome: Captured | Declined | Unsettled
    started_at_ms: int | None
    answered_at_ms: int
    attempts: int


def backoff_s(attempt: int) -> float:
    """Seconds before attempt `attempt` + 1 (counted from 1): 0.1-0.2, 0.2-0.4, 0.4-0.8 ... at most 3."""
    return min(BACKOFF_MIN_S * 2.0 ** min(attempt - 1, 10), BACKOFF_MAX_S) * random.uniform(0.5, 1.0)


def _answered(outcome: ChargeOutcome) -> bool:
    if isinstance(outcome, NotProcessed):
        return outcome.reached
    return not isinstance(outcome, Unknown)


async def charge_once(
    provider: PaymentProvider, breaker: CircuitBreaker, charge: Charge, wanted: Callable[[], bool]
) -> ChargeOutcome | Unsettled:
    """One attempt under the breaker: waits until it lets us through, asks whether it is `wanted` still, and tells it what came of it."""
    permit = await _permit(breaker, charge)
    if permit is None:
        return Unsettled(TOO_OLD)
    if not wanted():
        breaker.record(permit, None)
        return Unsettled(READ_TOO_LONG_AGO)
    return await _attempt(provider, breaker, permit, charge)


async def _permit(breaker: CircuitBreaker, charge: Charge) -> int | None:
    """None when the provider may have forgotten the key by the time we may ask: it would charge anew."""
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
    """Ask until the provider is definite. `on_slow` is called once, when a charge it may have is 2 s unanswered.

    Cancelling it is safe: the order is then where it was, and the next caller asks with the same key.
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
        self._deadline: float | None = None  # set by the first attempt that may have moved money
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
        while self._deadline is None:  # no attempt of ours can have charged: no limit but the key's
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
            self._stop_slow_timer()  # answered, or never sent: nothing is with the provider
        return outcome

    async def _wait(self, outcome: NotProcessed | Unknown) -> None:
        delay_s = backoff_s(self._attempts)
        if isinstance(outcome, NotProcessed) and outcome.retry_after_s is not None:
            delay_s += outcome.retry_after_s  # spread after the moment asked for, never before it
        await asyncio.sleep(delay_s)

    def _report_slow(self) -> None:
        if self._on_slow is not None:
            on_slow, self._on_slow = self._on_slow, None
            on_slow()

    def _stop_slow_timer(self) -> None:
        if self._slow_timer is not None:
            self._slow_timer.cancel()
            self._slow_timer = None
