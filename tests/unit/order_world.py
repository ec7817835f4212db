"""One order among actors that may be killed between any two steps: gateway, stages, relay, reconciler, projector.

Every actor is a generator that yields after each effect, which is where it can be killed; it decides by `advance` alone, as
the real ones do. Logs keep what was appended, a group reads again from its last acknowledgement.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from schemas.order_state import SETTLED, TERMINAL, UNPAID, Entry, Next, Status, advance, outcome_of, replaces

Actor = Iterator[None]
Announcement = tuple[Status, int | None]  # terminal status and the settlement's version

ROUNDS_UNTIL_QUIET = 60


@dataclass
class World:
    """The stores, as far as one order goes. `plant` names a bug to plant."""

    outcome: Status  # what the provider's key was fixed to
    unknown_attempts: int = 0  # so many charges stay unanswered
    refused: bool = False  # the database has no stock left for it
    plant: str = ""
    row: Status | None = None
    entry: Entry = Entry.NONE
    entry_version: int = 0
    version: int = 0
    orders: int = 0  # records appended
    payments: int = 0
    statuses: list[Announcement] = field(default_factory=list)
    read: dict[str, int] = field(default_factory=lambda: {"orders": 0, "payments": 0, "order-status": 0})
    shown: Status | None = None
    captures: int = 0
    charged: Status | None = None
    settlements: set[tuple[Entry, int]] = field(default_factory=set)
    reserved: bool = False

    # -- effects, each atomic in its store

    def reserve(self) -> None:
        if not self.reserved:  # the order id is the key
            self.version += 1
            self.reserved, self.entry, self.entry_version, self.shown = True, Entry.HELD, self.version, Status.QUEUED

    def insert(self) -> bool:
        if self.row is not None:
            return False
        self.row = Status.FAILED if self.refused else Status.AWAITING_PAYMENT
        return True

    def charge(self) -> Status | None:
        """None: unknown. The provider takes the money at most once a key, whether or not its answer arrives."""
        if self.charged is None:
            self.charged = self.outcome
            self.captures += self.outcome is Status.CONFIRMED
        elif self.plant == "a new key for each attempt":
            self.captures += self.outcome is Status.CONFIRMED
        if self.unknown_attempts > 0:
            self.unknown_attempts -= 1
            return None
        return self.charged

    def write(self, status: Status) -> None:
        if self.row in UNPAID or (self.plant == "no status guard" and self.row is not None):
            self.row = status

    def settle(self) -> int | None:
        """settle.lua: the version, the first one when asked again; None when no entry is left."""
        assert self.row in TERMINAL
        again = self.entry in SETTLED and self.plant == "settling again moves again"
        if self.entry is Entry.HELD or again:
            self.version += 1
            self.entry, self.entry_version = outcome_of(self.row), self.version
            self.settlements.add((self.entry, self.version))
            if self.plant == "the entry dies when it is settled":
                self.entry = Entry.NONE
                return self.version
        return self.entry_version if self.entry in SETTLED else None

    def announce(self, version: int | None) -> None:
        if version is not None:
            assert self.row in TERMINAL
            self.statuses.append((self.row, version))

    def project(self, news: Announcement) -> None:
        status, version = news
        if self.shown is None or replaces(status, self.shown):
            self.shown = status
        if self.entry in SETTLED and version == self.entry_version:
            self.entry = Entry.NONE

    def acknowledge(self, topic: str, offset: int) -> None:
        self.read[topic] = max(self.read[topic], offset + 1)  # a member that was thrown out cannot commit back


def gateway(world: World) -> Actor:
    world.reserve()
    yield
    world.orders += 1
    yield


def finish(world: World) -> Actor:
    """Settle, then announce: how every actor ends an order."""
    version = world.settle()
    yield
    world.announce(version)
    yield


def order_stage(world: World) -> Actor:
    if world.read["orders"] == world.orders:
        return
    at = world.read["orders"]
    new = world.insert()
    yield
    entry = world.entry if not new else Entry.HELD
    yield
    match advance(world.row, entry):
        case Next.PAY:
            world.payments += 1
            yield
        case Next.SETTLE | Next.ANNOUNCE if not new:
            yield from finish(world)
        case _:
            pass
    world.acknowledge("orders", at)
    yield


def payment_stage(world: World) -> Actor:
    if world.read["payments"] == world.payments:
        return
    at = world.read["payments"]
    row = world.row
    yield
    assert row is not None, "payment was requested for an order that has no row"
    if row is Status.AWAITING_PAYMENT:
        answer = world.charge()
        yield
        guess = Status.PAYMENT_FAILED if world.plant == "unknown is taken for declined" else Status.NEEDS_RECONCILIATION
        world.write(answer or guess)
        yield
    if world.row in TERMINAL:
        yield from finish(world)
    world.acknowledge("payments", at)
    yield


def reconciler(world: World) -> Actor:
    if world.row is not Status.NEEDS_RECONCILIATION:
        return
    answer = world.charge()
    yield
    if answer is not None:
        world.write(answer)
        yield
        yield from finish(world)


def relay(world: World) -> Actor:
    entry = world.entry  # before the row: a row read later can only be further on
    yield
    if entry is Entry.NONE:
        return  # the relay goes by the entries there are
    row = world.row
    yield
    match advance(row, entry):
        case Next.PLACE:
            world.orders += 1
            yield
        case Next.PAY:
            world.payments += 1
            yield
        case Next.SETTLE | Next.ANNOUNCE:
            yield from finish(world)
        case Next.RECONCILE:
            return
        case other:
            raise AssertionError(f"{row} with {entry} asks for {other}: nothing was lost in this world")


def projector(world: World) -> Actor:
    at = world.read["order-status"]
    if at == len(world.statuses):
        return
    world.project(world.statuses[at])
    yield
    world.acknowledge("order-status", at)
    yield


ACTORS: tuple[Callable[[World], Actor], ...] = (gateway, order_stage, payment_stage, reconciler, relay, projector)
COPIES = 2  # of each actor: a second member, or one that was taken for dead


class Run:
    """Actors in a world; `step` moves or kills one, `settle_down` lets all of them work until nothing is owed."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._running: dict[int, Actor] = {}

    def step(self, slot: int, kill: bool) -> None:
        if kill:
            self._running.pop(slot, None)
            return
        actor = self._running.setdefault(slot, ACTORS[slot % len(ACTORS)](self.world))
        try:
            next(actor)
        except StopIteration:
            del self._running[slot]
        self.check_always()

    def settle_down(self) -> None:
        """Heal: nobody is killed any more. The gateway's request is gone, the relay finishes it."""
        for slot in list(self._running):
            self._work_off(slot)
        for _ in range(ROUNDS_UNTIL_QUIET):
            for slot in range(1, len(ACTORS)):
                self._work_off(slot)

    def _work_off(self, slot: int) -> None:
        self.step(slot, kill=False)
        while slot in self._running:
            self.step(slot, kill=False)

    def check_always(self) -> None:
        world = self.world
        assert world.captures <= 1, "charged twice"
        assert len(world.settlements) <= 1, "units moved twice"
        assert len({status for status, _ in world.statuses}) <= 1, "two ends were announced"
        assert len(set(world.statuses)) <= 1, "one end was announced with two versions"
        if world.entry is Entry.NONE and world.settlements:
            assert world.shown in TERMINAL, "the entry died before the news of the end had arrived"

    def check_quiet(self) -> None:
        world = self.world
        assert world.row in TERMINAL, f"no end: {world.row}"
        assert world.entry is Entry.NONE, f"still {world.entry}"
        assert world.shown is world.row
        assert [status for status, _ in world.statuses[:1]] == [world.row]
        assert world.captures == (world.row is Status.CONFIRMED), "money and row disagree"
        ((outcome, _),) = world.settlements
        assert outcome is outcome_of(world.row)
