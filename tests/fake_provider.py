"""The payment provider in memory; it passes the contract that the real client passes (tests/contract)."""

import asyncio
from collections.abc import Iterable

from sale.payments.provider import Captured, ChargeOutcome, Definite, NotProcessed, Unknown


class FakePaymentProvider:
    """In memory, for tests: captures unless told otherwise; a key's definite outcome is fixed like the real one's."""

    def __init__(self, latency_s: float = 0.0) -> None:
        self.latency_s = latency_s
        self.attempts: list[str] = []
        self.captures: list[tuple[str, int, str]] = []
        self._script: dict[str, list[ChargeOutcome]] = {}
        self._decided: dict[str, tuple[int, str, Definite]] = {}

    def will(self, order_id: str, outcomes: Iterable[ChargeOutcome]) -> None:
        """The next attempts for `order_id` come to these; after them it captures, unless already decided."""
        self._script[order_id] = list(outcomes)

    def decide(self, order_id: str, amount_cents: int, currency: str) -> Definite:
        """Take the money behind the caller's back, as a provider does whose answer gets lost."""
        if order_id not in self._decided:
            self._settle(order_id, amount_cents, currency, Captured(f"ch_{order_id}"))
        return self._decided[order_id][2]

    async def charge(self, order_id: str, amount_cents: int, currency: str) -> ChargeOutcome:
        self.attempts.append(order_id)
        await asyncio.sleep(self.latency_s)
        script = self._script.get(order_id)
        outcome = script.pop(0) if script else None
        if isinstance(outcome, NotProcessed | Unknown):
            return outcome
        if outcome is not None and order_id not in self._decided:
            self._settle(order_id, amount_cents, currency, outcome)
        definite = self.decide(order_id, amount_cents, currency)
        if self._decided[order_id][:2] != (amount_cents, currency):
            return Unknown("status 422")
        return definite

    def _settle(self, order_id: str, amount_cents: int, currency: str, outcome: Definite) -> None:
        self._decided[order_id] = (amount_cents, currency, outcome)
        if isinstance(outcome, Captured):
            self.captures.append((order_id, amount_cents, currency))
