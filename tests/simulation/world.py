"""A seed in, a whole sale with everything going wrong out, and what the books say after it has healed.

Our own code runs: gateway orders, both stages, settlement desk, projector, reconciler, relay, keeper and rebuilds, and the
.lua files. Only the stores, the network and the clock are models. One thread, virtual time, one random generator: the
same seed is the same history.
"""

import asyncio
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import structlog
from pydantic import SecretStr

from consumers import projector, reconciler, relay
from consumers.audit.books import Report, balance
from consumers.audit.facts import Capture, ClientLog, OrderRow, PostgresBook, ProductFacts, RedisBook
from consumers.audit.log_book import LogBook
from gateway.orders import Orders
from gateway.problems import Problem
from infra.inventory import entry, keys
from infra.inventory.inventory import Inventory, Reservation
from infra.lifecycle import Stop
from infra.settings import Settings
from infra.settlement import SettlementDesk
from schemas import topics
from schemas.codec import decode
from schemas.events import OrderPlaced, OrderStatusChanged, StockOpened
from schemas.ids import OrderId, ProductId, UserId
from schemas.order_state import Status
from schemas.topics import CONSUMED_BY
from streams.acks import InOrderAcks
from streams.dead_letters import DeadLetters

from .actors import Actor, task_factory
from .clock import EPOCH_S, SimulatedLoop, virtual_time
from .log_model import LogModel, LogRecord
from .ports import (
    ConsumerPort,
    LogPort,
    OffsetsPort,
    PostgresPort,
    ProviderModel,
    ProviderPort,
    PublisherPort,
    RedisPort,
)
from .postgres_model import PostgresModel
from .redis_model import RedisModel

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # faust's own
    from streams.app import Resources
    from streams.order_stage import OrderStage
    from streams.payment_stage import PaymentStage

SETTINGS = Settings(thrones_profile="development", thrones_state_dir=Path("unused"), postgres_password=SecretStr("x"))
QUIET_WITHIN_S = 400.0  # of virtual time: the longest backoff is a minute
PRICE_CENTS = 999


@dataclass(frozen=True)
class Faults:
    """Chances, each asked where it says."""

    fault: float = 0.02  # a kill, an outage, a restart ... after a step
    lost_reply: float = 0.01  # of a store, after the effect
    late_redis: float = 0.005  # a command times out, and runs yet
    duplicate: float = 0.03  # of a record
    slow: float = 0.05  # of a trip
    not_sent: float = 0.05
    unknown: float = 0.15  # of an attempt to charge


CALM = Faults(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


class Violation(AssertionError):
    """An invariant was broken, at this step."""


@dataclass
class Clients:
    """What the buyers wrote down."""

    accepted: dict[str, tuple[int, str | None]] = field(default_factory=dict)
    unknown: dict[str, tuple[int, str | None]] = field(default_factory=dict)
    refused: dict[str, tuple[int, str | None]] = field(default_factory=dict)
    waiting: int = 0


class World:
    """Everything there is. `run` is the whole history."""

    def __init__(self, seed: int, steps: int = 1_000) -> None:
        self.seed, self.steps_wanted = seed, steps
        self.random = random.Random(seed)
        self.loop = SimulatedLoop()
        self.loop.set_task_factory(task_factory)  # type: ignore[arg-type]  # a Protocol of 3.12
        self.redis = RedisModel(self.now_ms, self._run_id())
        self.log = LogModel(self.now_ms)
        self.postgres = PostgresModel(lambda: EPOCH_S + self.loop.time())
        self.provider = ProviderModel()
        self.faults = Faults()
        self.clients = Clients()
        self.steps = 0
        self.history: list[str] = []  # faults, with the step they struck at
        self.problems: list[str] = []
        self.products = [ProductId(p) for p in range(1, self.random.choice((2, 2, 3)))]
        self._away_until_s: dict[str, float] = {}
        self._late = 0
        self._order_ids = 0
        self._copies: list[dict[str, Any]] = []
        self._forgiven: set[str] = set()
        self._actors: dict[str, Actor] = {}
        self._starting: dict[str, Callable[[Actor], Any]] = {}
        self._stages: dict[Actor, InOrderAcks[Any, Any]] = {}
        self._gateways: dict[Actor, Orders] = {}
        self._trace = blake2b(digest_size=8)

    @property
    def trace(self) -> str:
        """The whole history in 16 digits: equal for equal seeds."""
        return self._trace.hexdigest()

    def now_s(self) -> float:
        return self.loop.time()

    def now_ms(self) -> int:
        return int((EPOCH_S + self.loop.time()) * 1000)

    def chance(self, probability: float) -> bool:
        return probability > 0 and self.random.random() < probability

    def travel_s(self) -> float:
        slow = self.chance(self.faults.slow)
        return self.random.uniform(0.01, 0.6) if slow else self.random.uniform(0.000_2, 0.003)

    def away(self, what: str) -> bool:
        return self.now_s() < self._away_until_s.get(what, 0.0)

    def later(self, effect: Callable[[], object]) -> None:
        """Something still under way, on its own."""
        self._late += 1

        def arrive() -> None:
            self._late -= 1
            effect()
            self.check_instant()

        self.loop.call_later(self.random.uniform(0.05, 4.0), arrive)

    def step(self, actor: Actor, what: str) -> None:
        """An effect was had. Whatever must hold at every instant is looked at, and then anything may break."""
        self.steps += 1
        self._trace.update(f"{actor.name} {what} {self.now_s():.6f};".encode())
        self.check_instant()
        if self.chance(self.faults.fault):
            self._strike(actor)

    # What breaks

    def _strike(self, actor: Actor) -> None:
        fault = self.random.choices(
            (
                "kill this",
                "kill any",
                "pause",
                "rebalance",
                "second",
                "away",
                "redis restarts",
                "redis wiped",
                "copy",
                "disaster",
            ),
            (8, 6, 2, 2, 1, 3, 1, 1, 2, 1),
        )[0]
        match fault:
            case "kill this":
                self._kill(actor)
            case "kill any":
                self._kill(self.random.choice(list(self._actors.values())))
            case "pause":
                actor.paused_until_s = self.now_s() + self.random.uniform(0.5, 12.0)
                self._note(f"pause {actor.name}")
            case "rebalance":
                self._rebalance(self.random.choice(("order-stage", "payment-stage")))
            case "second":
                self._replace(self.random.choice(("relay", "reconciler", "projector")))
            case "away":
                what = self.random.choice(("redis", "postgres", "kafka", "provider"))
                self._away_until_s[what] = self.now_s() + self.random.uniform(0.1, 8.0)
                self._note(f"{what} away")
            case "disaster":
                self._strike_together()
            case "redis restarts":
                self.redis.restart(self._run_id())
                self._note(fault)
            case "redis wiped":
                self._lose({})
                self._note(fault)
            case "copy" if self._copies and self.chance(0.3):
                self._lose(self.random.choice(self._copies))
                self._note("redis comes back as an old copy")
            case _:
                self._copies.append(self.redis.snapshot())

    def _strike_together(self) -> None:
        """A power cut while Postgres is away: nobody has finished anything, and Redis is empty afterwards."""
        outage_s = self.random.uniform(1.5, 6.0)
        self._away_until_s["postgres"] = self.now_s() + outage_s
        self._note("postgres away, and then a power cut")

        def cut() -> None:
            if self.faults is CALM:
                return
            for actor in list(self._actors.values()):
                self._kill(actor)
            self._lose({})

        self.loop.call_later(self.random.uniform(1.0, outage_s), cut)

    def _note(self, what: str) -> None:
        self.history.append(f"{self.steps:5d} {self.now_s():8.3f} {what}")
        self._trace.update(what.encode())

    def _run_id(self) -> str:
        return f"{self.random.getrandbits(160):040x}"

    def _kill(self, actor: Actor) -> None:
        self._note(f"kill {actor.name}")
        actor.kill()
        self._stages.pop(actor, None)
        self._gateways.pop(actor, None)
        for name, known in list(self._actors.items()):
            if known is actor:
                self.loop.call_later(self.random.uniform(0.05, 3.0), self._start, name, actor)

    def _rebalance(self, name: str) -> None:
        """A new member has the partitions; the old one finishes what it has begun, and acknowledges nothing."""
        acks = self._stages.pop(self._actors[name], None)
        if acks is not None:
            acks.revoke([(CONSUMED_BY[name].name, p) for p in self.log.ends(CONSUMED_BY[name].name)])
        self._replace(name)

    def _replace(self, name: str) -> None:
        """A second one is started while the first, which does not know, goes on for a while."""
        self._note(f"second {name}")
        old = self._actors[name]
        self.loop.call_later(self.random.uniform(0.5, 15.0), old.kill)
        self._start(name, old)

    def _lose(self, data: dict[str, Any]) -> None:
        """Redis' data as it was once. What it alone knew is gone: the design forgives those, and only those."""
        on_log = {record.key.decode() for line in self.log.records[topics.ORDERS.name] for record in line}
        for product in self.products:
            after = data.get(keys.held(product), {})
            for order_id in self.redis.data.get(keys.held(product), {}):
                if order_id not in after and order_id not in on_log:
                    self._forgiven.add(order_id)
        self.redis.restart(self._run_id(), {key: _copied(value) for key, value in data.items()})

    # Who there is

    def _add(self, name: str, main: Callable[[Actor], Any]) -> None:
        self._starting[name] = main
        self._start(name, None)

    def _start(self, name: str, instead_of: Actor | None) -> None:
        if instead_of is not None and self._actors[name] is not instead_of:
            return
        actor = self._actors[name] = Actor(name)
        task = actor.spawn(self._starting[name](actor))
        task.add_done_callback(lambda done: self._ended(actor, done))

    def _ended(self, actor: Actor, task: asyncio.Task[Any]) -> None:
        if actor.alive and not task.cancelled():
            self.problems.append(f"{actor.name} crashed: {task.exception()!r}")
            self._kill(actor)

    async def _gateway(self, actor: Actor) -> None:
        inventory = Inventory(RedisPort(self))  # type: ignore[arg-type]
        nothing: Any = None
        self._gateways[actor] = Orders(SETTINGS, nothing, nothing, inventory, PublisherPort(self))  # type: ignore[arg-type]
        await asyncio.get_running_loop().create_future()

    async def _stage(self, actor: Actor, group: str) -> None:
        topic = CONSUMED_BY[group].name
        redis, pool, publisher = RedisPort(self), PostgresPort(self), PublisherPort(self)
        inventory: Any = Inventory(redis)  # type: ignore[arg-type]
        desk = SettlementDesk(pool, inventory, publisher)  # type: ignore[arg-type]
        letters = DeadLetters(publisher, clock=self.now_s)  # type: ignore[arg-type]
        resources = Resources(SETTINGS, pool, inventory, publisher, desk, letters)  # type: ignore[arg-type]
        acks: InOrderAcks[Any, Any] = InOrderAcks(pause=lambda _: None, resume=lambda _: None)
        self._stages[actor] = acks
        stage: Any
        match group:
            case topics.ORDER_STAGE_GROUP:
                stage = OrderStage(resources, acks)
            case _:
                stage = PaymentStage(resources, acks, ProviderPort(self))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(stage.run())
            tasks.create_task(self._feed(actor, group, topic, stage, acks))

    async def _feed(self, actor: Actor, group: str, topic: str, stage: Any, acks: InOrderAcks[Any, Any]) -> None:
        """What Faust does: hands records over in order, and commits every second what was acknowledged."""
        consumer = ConsumerPort(self, topic, group)
        await consumer.start()
        acked = self.log.committed(group, topic)
        commit_at_s = self.now_s()
        while self._stages.get(actor) is acks:
            for tp, records in (await consumer.getmany(timeout_ms=50)).items():
                for record in records:
                    if self._stages.get(actor) is acks:
                        stage.take(acks.take(tp, _FaustEvent(record, acked)))
            if self.now_s() >= commit_at_s + 1.0 and not self.away("kafka"):
                self.log.commit(group, topic, acked)
                commit_at_s = self.now_s()
                self.step(actor, f"commit {group}")

    async def _projector(self, actor: Actor) -> None:
        await projector.run(SETTINGS, Stop())

    async def _reconciler(self, actor: Actor) -> None:
        await reconciler.run(SETTINGS, Stop())

    async def _relay(self, actor: Actor) -> None:
        await relay._lead(SETTINGS)

    # Who buys

    async def _buy(self, user: int, product: ProductId, quantity: int, key: str | None) -> None:
        """One wish; with a key it is repeated until the answer is definite, as a good client does."""
        hashed = None if key is None else keys.key_hash(key)
        for _ in range(5):
            wish = Reservation(self._order_id(), UserId(user), product, quantity, PRICE_CENTS, "USD", hashed)
            told = await self._ask(wish)
            book = {"unknown": self.clients.unknown, "refused": self.clients.refused}.get(told, self.clients.accepted)
            book[wish.order_id if told in ("unknown", "refused") else told] = (user, hashed)
            if told not in ("unknown", "refused") or (key is None and told == "unknown"):
                break
            await asyncio.sleep(self.random.uniform(0.1, 3.0))
        self.clients.waiting -= 1

    async def _ask(self, wish: Reservation) -> str:
        if not self._gateways:
            return "refused"
        actor = self.random.choice(list(self._gateways))
        asked = actor.spawn(self._gateways[actor]._place(wish))
        await asyncio.wait((asked,))
        if asked.cancelled():
            return "unknown"
        error = asked.exception()
        if error is None:
            return str(asked.result())
        if not isinstance(error, Problem):
            raise error
        return "unknown" if error.code == "outcome_unknown" else "refused"

    def _order_id(self) -> OrderId:
        self._order_ids += 1
        ms, tail = f"{self.now_ms():012x}", self.random.getrandbits(48)
        return OrderId(f"{ms[:8]}-{ms[8:]}-7{self._order_ids:03x}-8000-{tail:012x}")

    async def _crowd(self) -> None:
        """Wishes until there have been enough steps; more than there is to sell."""
        while self.steps < self.steps_wanted:
            user, product = self.random.randint(1, 12), self.random.choice(self.products)
            key = f"key-{self.random.randint(1, 30)}" if self.chance(0.4) else None
            quantity = self.random.randint(1, 3) if key is None else 1 + int(key[4:]) % 3
            for _ in range(2 if key is not None and self.chance(0.3) else 1):  # a double click
                self.clients.waiting += 1
                asyncio.get_running_loop().create_task(self._buy(user, product, quantity, key))
            await asyncio.sleep(self.random.expovariate(4.0))

    # The whole history

    def run(self) -> Report:
        """Raises Violation at the step that broke an invariant; the report is of the books once all is quiet."""
        random.seed(self.seed)
        asyncio.set_event_loop(None)
        try:
            with virtual_time(self.loop) as datetime, self._patched(datetime):
                return self.loop.run_until_complete(self._run())
        finally:
            self.loop.close()

    async def _run(self) -> Report:
        for product in self.products:
            limit = self.random.choice((None, None, 5))
            self.postgres.create_product(product, self.random.randint(5, 40), PRICE_CENTS, limit)
        for name in ("gateway-1", "gateway-2"):
            self._add(name, self._gateway)
        self._add("order-stage", lambda actor: self._stage(actor, topics.ORDER_STAGE_GROUP))
        self._add("payment-stage", lambda actor: self._stage(actor, topics.PAYMENT_STAGE_GROUP))
        self._add("projector", self._projector)
        self._add("reconciler", self._reconciler)
        self._add("relay", self._relay)
        await asyncio.sleep(1.0)
        try:
            await self._crowd()
            self._heal()
            await self._until_quiet()
            return self._balance()
        finally:
            await self._end()

    def _heal(self) -> None:
        self._note("heal")
        self.faults = CALM
        self._away_until_s.clear()

    async def _until_quiet(self) -> None:
        until_s = self.now_s() + QUIET_WITHIN_S
        while (why := self._not_quiet()) and self.now_s() < until_s:
            self._check_failures()
            await asyncio.sleep(1.0)
        self._check_failures()
        if why:
            self.problems.append(f"not quiet {QUIET_WITHIN_S:.0f} s after healing: {why}")

    def _not_quiet(self) -> str | None:
        if self.clients.waiting or self._late:
            return "clients are waiting, or something is still on its way"
        for group, topic in CONSUMED_BY.items():
            if self.log.lag(group, topic.name):
                return f"{group} has not processed everything"
        unended = [
            row
            for row in self.postgres.orders.values()
            if row["status"] in ("awaiting_payment", "needs_reconciliation")
        ]
        if unended:
            return f"{len(unended)} orders have not ended, e.g. {unended[0]['id']} is {unended[0]['status']}"
        for product in self.products:
            left = self.redis.data.get(keys.held(product), {})
            if left:
                return f"held entries are left: {dict(list(left.items())[:2])}"
            if not self._redis_book(product).in_force:
                return f"the books of {product} are not in force"
        return None

    async def _end(self) -> None:
        for actor in list(self._actors.values()):
            actor.kill()
        me = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not me]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    # What must hold

    def _check_failures(self) -> None:
        if self.problems:
            raise Violation("; ".join(self.problems))

    def check_instant(self) -> None:
        for product in self.products:
            stock = self.redis.data.get(keys.stock(product), {})
            if stock.get("run") != self.redis.run_id or stock.get("state") == "closed":
                continue
            initial, available, held, sold = (int(stock[name]) for name in ("initial", "available", "held", "sold"))
            if initial != available + held + sold or min(available, held, sold) < 0:
                self._violated(f"I1: product {product}: {initial} != {available} + {held} + {sold}")
            lines = self.redis.data.get(keys.held(product), {}).values()
            of_entries = sum(int(line.split(" ", 5)[4]) for line in lines if line.startswith("h"))
            if of_entries != held:
                self._violated(f"I1: product {product}: {held} units held, entries say {of_entries}")
            charged = sum(self.postgres.orders[c[0]]["quantity"] for c in self.provider.captures
                          if self.postgres.orders[c[0]]["product_id"] == product)  # fmt: skip
            if charged > initial:
                self._violated(f"I3: product {product}: {charged} units charged of {initial}")

    def _violated(self, what: str) -> None:
        if not self.problems or self.problems[-1] != what:
            self._note(f"VIOLATION {what}")
            self.problems.append(what)

    def _balance(self) -> Report:
        logs = {product: LogBook(product) for product in self.products}
        for name in (topics.ORDERS.name, topics.ORDER_STATUS.name):
            for record in (record for line in self.log.records[name] for record in line):
                event = decode(record.value)
                if isinstance(event, OrderPlaced | OrderStatusChanged | StockOpened):
                    logs[ProductId(event.product_id)].add(event, record.timestamp)
        letters = [record.headers for line in self.log.records[topics.DEAD_LETTERS.name] for record in line]
        facts = [ProductFacts(product, self._redis_book(product), self._postgres_book(product), logs[product],
                              self._captures(product)) for product in self.products]  # fmt: skip
        return balance(
            facts, client_log=self._client_log(), other_problems=[f"dead letter: {letter}" for letter in letters]
        )

    def _captures(self, product: ProductId) -> list[Capture]:
        return [Capture(*c) for c in self.provider.captures if self.postgres.orders[c[0]]["product_id"] == product]

    def _client_log(self) -> ClientLog:
        clients, rows = self.clients, self.postgres.orders
        lost = {id_ for id_ in clients.accepted if id_ in self._forgiven and id_ not in rows}
        told: dict[tuple[int, str | None], set[str]] = {}
        for order_id, wish in clients.accepted.items():
            if wish[1] is not None:
                told.setdefault(wish, set()).add(order_id)
        return ClientLog(
            accepted=frozenset(clients.accepted.keys() - lost),
            unknown=frozenset(clients.unknown.keys() | lost),
            refused=frozenset(clients.refused),
            unknown_wishes=frozenset(clients.unknown.values()),
            doubled_wishes={
                wish: frozenset(ids) for wish, ids in told.items() if len(ids) > 1 and not ids & self._forgiven
            },
        )

    def _redis_book(self, product: ProductId) -> RedisBook:
        stock = self.redis.data.get(keys.stock(product), {})
        numbers = {
            name: int(stock.get(name, 0)) for name in ("epoch", "version", "initial", "available", "held", "sold")
        }
        held = self.redis.data.get(keys.held(product), {})
        return RedisBook(
            in_force=stock.get("run") == self.redis.run_id and stock.get("state") != "closed",
            **numbers,
            entries={id_: entry.parse(OrderId(id_), line.encode()) for id_, line in held.items()},
            buyers={int(user): int(units) for user, units in self.redis.data.get(keys.buyers(product), {}).items()},
        )

    def _postgres_book(self, product: ProductId) -> PostgresBook:
        names = ("id", "user_id", "quantity", "unit_price_cents", "currency", "epoch", "placed_at_ms", "key_hash")
        rows = [row for row in self.postgres.orders.values() if row["product_id"] == product]
        orders = [
            # A key that was lost with its order may have been used again before the order was found after all.
            OrderRow(status=Status(row["status"]), **{name: row[name] for name in names} | self._forgiven_key(row))
            for row in rows
        ]
        of_product = self.postgres.products[product]
        return PostgresBook(of_product["initial"], of_product["taken"], of_product["epoch"], orders)

    def _forgiven_key(self, row: dict[str, Any]) -> dict[str, None]:
        return {"key_hash": None} if row["id"] in self._forgiven else {}

    @contextmanager
    def _patched(self, datetime: type) -> Iterator[None]:
        """Our modules with ports instead of connections."""

        async def pool(*_: Any, **__: Any) -> PostgresPort:
            return PostgresPort(self)

        async def publisher(*_: Any) -> PublisherPort:
            return PublisherPort(self)

        def redis(*_: Any, **__: Any) -> RedisPort:
            return RedisPort(self)

        def consumer(_: Any, topic: str | None = None, group: str | None = None, **__: Any) -> ConsumerPort:
            return ConsumerPort(self, topic, group)

        def offsets(_: Any) -> OffsetsPort:
            return OffsetsPort(self)

        starts = SimpleNamespace(start=publisher)
        replaced: dict[str, Any] = {
            "asyncpg.connect": pool,
            "consumers.projector.connect_redis": redis,
            "consumers.projector.make_consumer": consumer,
            "consumers.projector.Watchdog": _Nobody,
            "consumers.reconciler.connect_postgres": pool,
            "consumers.reconciler.connect_redis": redis,
            "consumers.reconciler.Publisher": starts,
            "consumers.reconciler.HttpPaymentProvider": lambda _: ProviderPort(self),
            "consumers.reconciler.datetime": datetime,
            "consumers.relay.connect_redis": redis,
            "consumers.relay.connect_postgres": pool,
            "consumers.relay.Publisher": starts,
            "consumers.relay.Log": lambda _: LogPort(self),
            "consumers.relay_books.datetime": datetime,
            "infra.inventory.rebuild.Offsets": offsets,
            "infra.inventory.rebuild_sources.make_consumer": consumer,
            "infra.watermarks.Offsets": offsets,
            "infra.watermarks.make_consumer": consumer,
            "streams.payment_stage.datetime": datetime,
        }
        before = structlog.get_config()
        with ExitStack() as stack:
            for name, stand_in in replaced.items():
                stack.enter_context(patch(name, stand_in))
            structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
            try:
                yield
            finally:
                structlog.configure(**before)


class _FaustEvent:
    """What a stage is handed: the message, and the acknowledgement that moves the position to be committed."""

    def __init__(self, message: LogRecord, acked: dict[int, int]) -> None:
        self.message = message
        self._acked = acked

    def ack(self) -> bool:
        self._acked[self.message.partition] = self.message.offset + 1
        return True


class _Nobody:
    """Instead of a watchdog."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    async def run(self) -> None:
        pass


def _copied(value: Any) -> Any:
    return value if isinstance(value, str) else type(value)(value)


__all__ = ["Violation", "World"]
