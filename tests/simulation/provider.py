"""The payment provider: its own books, and our PaymentProvider over them under the weather of the world."""

import asyncio
from collections.abc import Callable

from sale.payments.provider import KEY_LIFETIME, Captured, ChargeOutcome, Declined, NotProcessed, Unknown

from .port import Port

KEY_LIFETIME_S = KEY_LIFETIME.total_seconds()
CONNECTION_S = 60.0  # of a request that nobody sends or reads on: only a machine that was suspended is slower


class ProviderModel:
    """The outcome of a key is fixed when it is first drawn, and money moves once a key - for as long as keys are remembered."""

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._drawn: dict[str, tuple[float, bool]] = {}
        self.captures: list[tuple[str, int, str]] = []  # order, amount, currency

    def charge(self, key: str, amount_cents: int, currency: str, declines: bool) -> bool:
        """True when the money is (or was) taken. `key` is the order id, and whatever may follow it after a slash."""
        drawn_s, declined = self._drawn.get(key, (float("-inf"), False))
        if self._clock_s() - drawn_s > KEY_LIFETIME_S:
            declined = declines
            self._drawn[key] = (self._clock_s(), declined)
            if not declined:
                self.captures.append((key.partition("/")[0], amount_cents, currency))
        return not declined

    def has_captured(self, order_id: str) -> bool:
        return any(order == order_id for order, _, _ in self.captures)


class ProviderPort(Port):
    """Implements PaymentProvider."""

    async def __aenter__(self) -> "ProviderPort":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def charge(self, order_id: str, amount_cents: int, currency: str) -> ChargeOutcome:
        asked_s = self.world.now_s()
        await self.travel()
        if self.world.away("provider"):
            return NotProcessed(None, reached=False)
        weather = self.world.random.random()
        if weather < self.world.chances.not_sent:
            return NotProcessed(self.world.random.uniform(0.1, 1.0), reached=True)
        declines = self.world.chance(0.15)
        unknown = weather < self.world.chances.not_sent + self.world.chances.unknown
        if unknown and self.world.chance(0.5):
            if self.world.chance(0.4):  # the question arrives after we have stopped waiting for its answer
                self.world.later(lambda: self.world.provider.charge(order_id, amount_cents, currency, declines))
            await asyncio.sleep(self.world.random.choice((0.1, 5.0)))
            return Unknown("no answer")
        await asyncio.sleep(self.world.random.uniform(0.01, 1.5))
        self._still_there()
        if self.world.now_s() - asked_s > CONNECTION_S:
            return Unknown("the connection did not survive this long")
        taken = self.world.provider.charge(order_id, amount_cents, currency, declines)
        self.step("charge")
        if unknown:
            return Unknown("reset after it was done")
        await self.travel()
        return Captured(f"charge-{order_id}") if taken else Declined("declined")
