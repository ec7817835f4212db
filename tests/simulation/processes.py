"""Who there is: our processes as actors over ports, started again when they die."""

import asyncio
import warnings
from collections.abc import Callable, Coroutine
from typing import Any

from consumers import projector, reconciler
from consumers.relay import relay
from gateway.accounts.identity import AuthenticatedUser
from gateway.buying.admission import RateLimit
from gateway.buying.catalogue import make_product
from gateway.buying.purchases import Purchases
from gateway.http.addresses import Addresses
from gateway.http.slow_bodies import SlowBodies
from gateway.watching.stock_stream import StockHub
from infra.lifecycle import Stop
from infra.redis.pipeliner import Pipeliner
from infra.watchdog import Watchdog
from sale.books.books import Books
from sale.books.inventory import Inventory
from sale.settlement import SettlementDesk
from schemas import topics
from schemas.ids import ProductId, UserId
from schemas.topics import CONSUMED_BY
from streams.acks import InOrderAcks
from streams.dead_letters import DeadLetters

from .actors import Actor
from .kafka_ports import ConsumerPort, PublisherPort
from .log_model import LogRecord
from .operator import Operator
from .postgres_port import PostgresPort
from .provider import ProviderPort
from .redis_port import RedisPort
from .settings import SETTINGS

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # faust's own
    from streams.app import Resources
    from streams.order_stage import OrderStage
    from streams.payment_stage import PaymentStage

STUCK_LOOK_S = 5.0


class Processes:
    """Every actor of one world by its name; `gateways` serve buyers."""

    def __init__(self, world: Any) -> None:
        self._world = world
        self._actors: dict[str, Actor] = {}
        self._starting: dict[str, Callable[[Actor], Any]] = {}
        self.gateways: dict[Actor, Purchases] = {}
        self.hubs: dict[Actor, StockHub] = {}

    @property
    def all(self) -> list[Actor]:
        return list(self._actors.values())

    def start_all(self) -> None:
        for name in ("gateway-1", "gateway-2"):
            self._add(name, self._gateway)
        for group in (topics.ORDER_STAGE_GROUP, topics.PAYMENT_STAGE_GROUP):
            self._add(group, self._stage_of(group))
        self._add("projector", lambda _: projector.run(SETTINGS, Stop()))
        self._add("reconciler", lambda _: reconciler.run(SETTINGS, Stop()))
        self._add("relay", lambda _: relay._lead(SETTINGS))
        self._add("operator", lambda actor: Operator(self._world, actor).work())

    def kill(self, actor: Actor) -> None:
        self._end(actor)
        for name, known in list(self._actors.items()):
            if known is actor:
                self._world.loop.call_later(self._world.random.uniform(0.05, 3.0), self._start, name, actor)

    def kill_all(self) -> None:
        for actor in self.all:
            self.kill(actor)

    def replace(self, name: str) -> None:
        """A second one is started while the first, which does not know, goes on for a while."""
        self._world.note(f"second {name}")
        old = self._actors[name]
        self._world.loop.call_later(self._world.random.uniform(0.5, 15.0), old.kill)
        self._start(name, old)

    def add_or_remove_member(self, group: str) -> None:
        name = f"{group}-2"
        if name in self._actors:
            self._starting.pop(name)
            self._end(self._actors.pop(name))
        else:
            self._world.note(f"another member of {group}")
            self._add(name, self._stage_of(group))

    async def end_all(self) -> None:
        for actor in self.all:
            actor.kill()
        me = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not me]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _end(self, actor: Actor) -> None:
        self._world.note(f"kill {actor.name}")
        actor.kill()
        self.gateways.pop(actor, None)
        self.hubs.pop(actor, None)
        for group in self._world.log.groups.values():
            group.leave(actor)

    def _add(self, name: str, main: Callable[[Actor], Any]) -> None:
        self._starting[name] = main
        self._start(name, None)

    def _start(self, name: str, instead_of: Actor | None) -> None:
        if name not in self._starting or (instead_of is not None and self._actors[name] is not instead_of):
            return
        actor = self._actors[name] = Actor(name)
        task = actor.spawn(self._starting[name](actor))
        task.add_done_callback(lambda done: self._ended(actor, done))

    def _ended(self, actor: Actor, task: asyncio.Task[Any]) -> None:
        if actor.alive and not task.cancelled():
            self._world.verdict.violated(f"{actor.name} crashed: {task.exception()!r}")
            self.kill(actor)

    async def _gateway(self, actor: Actor) -> None:
        redis: Any = RedisPort(self._world)
        publisher: Any = PublisherPort(self._world)
        inventory, addresses = Inventory(redis), Addresses(())
        bodies = SlowBodies(addresses)
        stand_ins: Any = (_Identity(), _Catalogue(), _Room(), _NoWait())
        identity, catalogue, room, no_wait = stand_ins
        orders = Purchases(SETTINGS, identity, addresses, bodies, catalogue, inventory, publisher, room, no_wait)
        orders._rates = RateLimit(1_000)  # of a few users, who are many
        self.gateways[actor] = orders
        self.hubs[actor] = StockHub(SETTINGS, Books(Pipeliner(redis)))
        await self.hubs[actor].run()

    def _stage_of(self, group: str) -> Callable[[Actor], Coroutine[Any, Any, None]]:
        return lambda actor: self._stage(actor, group)

    async def _stage(self, actor: Actor, group: str) -> None:
        redis: Any = RedisPort(self._world)
        pool: Any = PostgresPort(self._world)
        publisher: Any = PublisherPort(self._world)
        inventory = Inventory(redis)
        desk, letters = SettlementDesk(pool, inventory, publisher), DeadLetters(publisher, clock=self._world.now_s)
        resources = Resources(SETTINGS, pool, inventory, publisher, desk, letters)
        acks: InOrderAcks[Any, Any] = InOrderAcks()
        stage: Any
        match group:
            case topics.ORDER_STAGE_GROUP:
                stage = OrderStage(resources, acks)
            case _:
                stage = PaymentStage(resources, acks, ProviderPort(self._world))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(stage.run())
            tasks.create_task(_Feed(self._world, actor, group, stage, acks).run())
            tasks.create_task(self._watch(actor, group, acks))

    async def _watch(self, actor: Actor, group: str, acks: InOrderAcks[Any, Any]) -> None:
        """The watchdog's own judgement, without its thread."""
        watchdog = Watchdog(
            SETTINGS,
            group,
            idle=lambda: not acks.open,
            partitions=lambda: range(CONSUMED_BY[group].partitions),
            clock=self._world.now_s,
            end_process=lambda _: self.kill(actor),
        )
        while actor.alive:
            await asyncio.sleep(STUCK_LOOK_S)
            await watchdog._check()


class _Feed:
    """What Faust does: hands records over in order, and commits every second what was acknowledged."""

    def __init__(self, world: Any, actor: Actor, group: str, stage: Any, acks: InOrderAcks[Any, Any]) -> None:
        self._world, self._actor, self._stage, self._acks = world, actor, stage, acks
        self._name, self._topic = group, CONSUMED_BY[group].name
        self._group = world.log.groups[group]
        self._generation = -1
        self._acked: dict[int, int] = {}

    async def run(self) -> None:
        consumer = ConsumerPort(self._world, self._topic)
        commit_at_s = self._world.now_s()
        while self._actor.alive:
            if self._generation < 0 or (self._generation != self._group.generation and self._world.chance(0.1)):
                self._rejoin(consumer)
            for tp, records in (await consumer.getmany(timeout_ms=100)).items():
                for record in records:
                    self._stage.take(self._acks.take(tp, _FaustEvent(record, self._acked)))
            if self._world.now_s() >= commit_at_s + 1.0:
                self._commit()
                commit_at_s = self._world.now_s()

    def _rejoin(self, consumer: ConsumerPort) -> None:
        if not self._world.log_answers():
            return
        self._acks.revoke([(self._topic, p) for p in self._world.log.ends(self._topic)])
        self._group.join(self._actor)
        self._generation = self._group.generation
        committed = self._world.log.committed(self._name, self._topic)
        self._acked = {p: committed[p] for p in self._group.partitions_of(self._actor)}
        consumer.assign([])
        for partition, at in self._acked.items():
            consumer.seek((self._topic, partition), at)

    def _commit(self) -> None:
        if self._world.log_answers() and self._generation == self._group.generation:
            self._world.log.commit(self._name, self._topic, self._acked)
            self._world.step(self._actor, f"commit {self._name}")


class _FaustEvent:
    """What a stage is handed: the message, and the acknowledgement that moves the position to be committed - never back."""

    def __init__(self, message: LogRecord, acked: dict[int, int]) -> None:
        self.message = message
        self._acked = acked

    def ack(self) -> bool:
        partition = self.message.partition
        if partition in self._acked:
            self._acked[partition] = max(self._acked[partition], self.message.offset + 1)
        return True


class _Identity:
    """Buyers say who they are."""

    def user_of(self, request: Any) -> AuthenticatedUser:
        return AuthenticatedUser(UserId(request.user), "user", float("inf"))


class _Room:
    """Redis is never full here."""

    full = False


class _NoWait:
    """Purchases are never refused here for what waits: the schedules stop stages for as long as they like."""

    def admit(self) -> None:
        pass


class _Catalogue:
    def cached(self, product: ProductId) -> Any:
        return make_product(product, "a thing", 999, "USD")
