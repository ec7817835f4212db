"""A seed in, a whole sale with everything going wrong out, and what the books say after it has healed.

Our own code runs: gateway orders and streams, both stages, settlement desk, projector, reconciler, relay, keeper and rebuilds,
watchdogs, an operator's commands, and the .lua files. Only the stores, the network and the clock are models. One thread,
virtual time, one random generator: the same seed is the same history.
"""

import asyncio
import random
from collections.abc import Callable
from datetime import timedelta
from hashlib import blake2b
from typing import Any

from consumers.audit.balance import AuditReport
from schemas.ids import OrderId, ProductId

from .actors import Actor, task_factory
from .buyers import DRAWN, Crowd
from .clock import EPOCH_S, SimulatedLoop, WallClocks, as_datetime, virtual_time
from .faults import CALM, Chances, Striker
from .log_model import LogModel
from .postgres_model import PostgresModel
from .processes import Processes
from .provider import ProviderModel
from .redis_model import RedisModel
from .verdict import Verdict, Violation
from .wiring import wired

QUIET_WITHIN_S = 400.0  # of virtual time: the longest backoff is a minute
QUIET_FOR_S = 4
PRICE_CENTS = 999


class World:
    """Everything there is. `run` is the whole history."""

    def __init__(self, seed: int, steps: int = 1_000, chances: Chances | None = None) -> None:
        self.seed, self.steps_wanted = seed, steps
        self.random = random.Random(seed)
        self.loop = SimulatedLoop()
        self.loop.set_task_factory(task_factory)  # type: ignore[arg-type]  # a Protocol of 3.12
        self.loop.set_exception_handler(self._on_unhandled)
        self.clocks = WallClocks(seed, self.loop)
        self.redis = RedisModel(lambda: self._clock_ms("redis"), self.run_name())
        self.log = LogModel(lambda: self._clock_ms("kafka"))
        self.postgres = PostgresModel(lambda: self.clocks.now_s("postgres"))
        self.provider = ProviderModel(self.wall_s)
        self.chances = chances or Chances()
        self.steps, self._began_s = 0, self.now_s()
        self.history: list[str] = []  # faults, with the step they struck at
        self._late: dict[Callable[[], None], asyncio.TimerHandle] = {}  # effects that are still on their way
        self.products = [ProductId(p) for p in range(1, self.random.choice((2, 2, 3)))]
        self._away_until_s: dict[str, float] = {}
        self._order_ids = 0
        self._trace = blake2b(digest_size=8)
        self.striker, self.processes = Striker(self), Processes(self)
        self.crowd, self.verdict = Crowd(self), Verdict(self)

    @property
    def trace(self) -> str:
        """The whole history in 16 digits: equal for equal seeds."""
        return self._trace.hexdigest()

    def now_s(self) -> float:
        return self.loop.now_s

    def wall_s(self) -> float:
        return EPOCH_S + self.loop.now_s

    def now_ms(self) -> int:
        return int((EPOCH_S + self.loop.now_s) * 1000)

    def _clock_ms(self, server: str) -> int:
        return int(self.clocks.now_s(server) * 1000)

    def chance(self, probability: float) -> bool:
        return probability > 0 and self.random.random() < probability

    def travel_s(self) -> float:
        slow = self.chance(self.chances.slow)
        return self.random.uniform(0.01, 0.6) if slow else self.random.uniform(0.000_2, 0.003)

    def away(self, what: str) -> bool:
        return self.loop.now_s < self._away_until_s.get(what, 0.0)

    def go_away(self, what: str, seconds: float) -> None:
        self._away_until_s[what] = self.now_s() + seconds

    def log_answers(self) -> bool:
        return self.log.exists and not self.away("kafka")

    def run_name(self) -> str:
        return f"{self.random.getrandbits(160):040x}"

    def order_id(self) -> OrderId:
        self._order_ids += 1
        ms, tail = f"{self.now_ms():012x}", self.random.getrandbits(48)
        order_id = OrderId(f"{ms[:8]}-{ms[8:]}-7{self._order_ids:03x}-8000-{tail:012x}")
        if self.chance(self.chances.refused):
            self.postgres.refused.add(order_id)
        DRAWN.get().append(order_id)
        return order_id

    def later(self, effect: Callable[[], object]) -> None:
        """Something still under way, on its own."""

        def arrive() -> None:
            del self._late[arrive]
            effect()
            self.verdict.check_instant()

        self._late[arrive] = self.loop.call_later(self.random.uniform(0.05, 4.0), arrive)

    @property
    def late(self) -> int:
        return len(self._late)

    def let_arrive(self) -> None:
        """What is under way now, before anything else happens: networks forget what is older than minutes."""
        for arrive, timer in list(self._late.items()):
            timer.cancel()
            arrive()

    def step(self, actor: Actor, what: str) -> None:
        """An effect was had. Whatever must hold at every instant is looked at, and then anything may break."""
        self.steps += 1
        self._trace.update(f"{actor.name} {what} {self.now_s():.6f};".encode())
        self.verdict.check_instant()
        if self.chances is not CALM and (set_by := self.clocks.set_one(self.now_s() - self._began_s)):
            self.note(set_by)
        if self.chance(self.chances.fault):
            self.striker.strike(actor)

    def note(self, what: str) -> None:
        self.history.append(f"{self.steps:5d} {self.now_s():8.3f} {what}")
        self._trace.update(what.encode())

    def _on_unhandled(self, _: object, context: dict[str, Any]) -> None:
        """What nobody awaits has failed: also in a killed process, whose tasks a graceful stop would cancel the same way."""
        if "exception" in context and not self.loop.is_closed():
            self.verdict.violated(f"unhandled: {context['exception']!r}")

    def run(self) -> AuditReport:
        """Raises Violation at the step that broke an invariant; the report is of the books once all is quiet."""
        random.seed(self.seed)
        asyncio.set_event_loop(None)
        try:
            with virtual_time(self.loop, self.clocks), wired(self):
                return self.loop.run_until_complete(self._run())
        finally:
            self.loop.close()

    async def _run(self) -> AuditReport:
        for product in self.products:
            self._create(product)
        self.processes.start_all()
        await asyncio.sleep(1.0)
        try:
            await self.crowd.come()
            self._heal()
            await self._until_quiet()
            return await self.verdict.balance()
        finally:
            await self.processes.end_all()

    def _create(self, product: ProductId) -> None:
        """With a per-user limit and a sale window, now and then."""
        now = as_datetime(self.wall_s())
        opens_s, closes_s = self.random.choice((None, None, 2, 8)), self.random.choice((None, None, None, 40))
        self.postgres.create_product(
            product,
            self.random.randint(5, 40),
            PRICE_CENTS,
            self.random.choice((None, None, 5)),
            now + timedelta(seconds=opens_s) if opens_s else None,
            now + timedelta(seconds=closes_s) if closes_s else None,
        )

    def _heal(self) -> None:
        self.note("heal")
        self.chances = CALM
        self._away_until_s.clear()
        self.striker.heal()

    async def _until_quiet(self) -> None:
        """Quiet for as long as a keeper may take to notice that the log has been wiped."""
        until_s, quiet_s = self.now_s() + QUIET_WITHIN_S, 0
        while quiet_s < QUIET_FOR_S:
            why = self.verdict.not_quiet()
            quiet_s = 0 if why else quiet_s + 1
            if why and self.now_s() > until_s:
                self.verdict.violated(f"not quiet {QUIET_WITHIN_S:.0f} s after healing: {why}")
            self.verdict.raise_if_violated()
            await asyncio.sleep(1.0)


__all__ = ["Violation", "World"]
