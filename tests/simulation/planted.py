"""Bugs to be planted one at a time, each in the product's own code, scripts or SQL, and how each is hunted.

The list is that of the fault campaign's issue. A bug that no book catches means that the books are not worth their name.
"""

import asyncio
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

from asyncpg import InterfaceError, PostgresError
from msgspec import structs

from consumers.relay.keeper import Keeper
from consumers.relay.pushes import Pusher
from gateway.buying import purchases as orders
from gateway.buying.purchases import Purchases, decode_purchase
from gateway.http.problems import Problem
from gateway.watching.tail import Tail
from infra.redis.client import RedisError
from sale.books import key_record, keys
from sale.books.inventory import Inventory, Known
from sale.books.rebuild.rebuild import _Rebuild
from sale.books.scripts import SCRIPTS
from sale.orders import read_rows
from sale.payments import charging
from sale.payments.provider import Declined, Unknown
from sale.settlement import SettlementDesk
from schemas.ids import new_order_id
from schemas.order_state import Status

from .faults import CALM, Chances, Striker
from .kafka_ports import ConsumerPort
from .redis_model import RedisModel
from .world import Violation, World

Plant = Callable[[], AbstractContextManager[Any]]
Weather = Callable[[], AbstractContextManager[Any]]


def no_weather() -> AbstractContextManager[Any]:
    return ExitStack()


@dataclass(frozen=True, slots=True)
class Planted:
    """A bug in the simulation. `weather` is of the hunt, not of the bug: the control runs in it too."""

    name: str
    plant: Plant
    chances: Chances | None = None
    weather: Weather = no_weather

    def problems(self, seed: int, *, planted: bool = True) -> list[str]:
        with self.weather(), self.plant() if planted else no_weather():
            try:
                world = World(seed, chances=self.chances)
                return world.run().problems
            except Violation as violation:
                return [str(violation)]


@dataclass(frozen=True, slots=True)
class PlantedInSql:
    """A bug in a function of Postgres: `old` is replaced by `new` in it."""

    name: str
    function: str
    changes: tuple[tuple[str, str], ...]


def _changed(script: str, old: str, new: str) -> AbstractContextManager[Any]:
    body = SCRIPTS[script]
    assert old in body, f"{script}.lua has changed: plant this bug anew"
    return patch.dict("tests.simulation.redis_model.INSTEAD_OF", {body: body.replace(old, new)})


@contextmanager
def ack_before_insert() -> Iterator[None]:
    from streams.acks import InWork

    async def run(self: Any) -> None:
        async with asyncio.TaskGroup() as self._group:
            while True:
                batch = await self._inbox.take(500)
                self._acks.finish(batch)
                with InWork(self._acks, batch) as mine:
                    await self._process(mine)

    with patch("streams.order_stage.OrderStage.run", run):
        yield


@contextmanager
def idempotency_outside_the_script() -> Iterator[None]:
    real = Inventory.reserve

    async def reserve(self: Any, wish: Any) -> Any:
        """Looks first, then takes: two requests at once both find nothing."""
        known = wish.hashed_key and await self.redis.get(keys.key_record(wish.user_id, wish.hashed_key))
        if known:
            order_id, body = key_record.parse(known.decode())
            return Known(order_id, body == wish.body)
        return await real(self, wish)

    asked = _changed(
        "reserve", "local known = redis.call('GET', KEYS[6]) or redis.call('GET', KEYS[8])", "local known = false"
    )
    with asked, patch.object(Inventory, "reserve", reserve):
        yield


def release_twice() -> AbstractContextManager[Any]:
    return _changed("settle", "if state ~= 'h' then", "if state ~= 'h' and ARGV[2] ~= 'r' then")


@contextmanager
def new_payment_key_per_retry() -> Iterator[None]:
    real, attempts = charging._attempt, iter(range(1_000_000))

    async def attempt(provider: Any, breaker: Any, permit: int, charge: Any) -> Any:
        return await real(
            provider,
            breaker,
            permit,
            structs.replace(charge, order_id=f"{charge.order_id}/{next(attempts)}"),
        )

    with patch("sale.payments.charging._attempt", attempt):
        yield


@contextmanager
def asks_when_the_key_is_forgotten() -> Iterator[None]:
    async def permit(breaker: Any, *_: Any) -> int:
        granted: int = await breaker.acquire()
        return granted

    with patch("sale.payments.charging._permit", permit):
        yield


def entry_deleted_before_the_end_is_acknowledged() -> AbstractContextManager[Any]:
    return _changed(
        "settle",
        "redis.call('ZADD', KEYS[3], now",
        "redis.call('HDEL', KEYS[2], ARGV[1])\nredis.call('ZADD', KEYS[3], now",
    )


@contextmanager
def relay_copy_without_version() -> Iterator[None]:
    async def announce(self: Any, rows: Any) -> None:
        await self.inventory.settle([(row.product_id, row.id, _outcome(row)) for row in rows])
        await self.desk.announce_unheld(rows)

    with patch.object(Pusher, "_announce", announce):
        yield


def _outcome(row: Any) -> Any:
    from schemas.order_state import outcome_of

    return outcome_of(row.status)


@contextmanager
def charge_not_found_taken_as_declined() -> Iterator[None]:
    real = charging._attempt

    async def attempt(provider: Any, breaker: Any, permit: int, charge: Any) -> Any:
        outcome = await real(provider, breaker, permit, charge)
        if isinstance(outcome, Unknown) and not provider.world.provider.has_captured(charge.order_id):
            return Declined("not found")
        return outcome

    with patch("sale.payments.charging._attempt", attempt):
        yield


@contextmanager
def sold_out_from_memory_before_the_key_is_asked() -> Iterator[None]:
    real = Purchases.buy

    async def buy(self: Any, request: Any) -> Any:
        product, quantity = decode_purchase(request.content.read_nowait(-1))
        if self._sold_out.covers(product, quantity):
            raise Problem("sold_out")
        return await real(self, request)

    with patch.object(Purchases, "buy", buy):
        yield


@contextmanager
def release_after_the_database_refused() -> Iterator[None]:
    from streams.placing import Outcome, Placing

    real = Placing._insert

    async def insert(self: Any, placements: Any, vouched: bool) -> Any:
        answers = await real(self, placements, vouched)
        self.failed = [id_ for id_, answer in answers.items() if answer == (Outcome.NEW, Status.FAILED)]
        return answers

    async def refuse(self: Any, products: set[int]) -> None:
        if products:
            resources = self._resources
            await resources.desk.announce(list((await read_rows(resources.pool, self.failed)).values()))

    with patch.object(Placing, "_insert", insert), patch.object(Placing, "_refuse", refuse):
        yield


def falsified_books_and_nothing_else() -> AbstractContextManager[Any]:
    """Redis believes in units that do not exist, and no other fault leads to a rebuild that would hide it."""

    def strike(self: Any, actor: Any) -> None:
        self._falsify(actor)

    return patch.object(Striker, "strike", strike)


@contextmanager
def rebuild_reads_postgres_before_the_offsets() -> Iterator[None]:
    real = _Rebuild._attempt

    async def attempt(self: Any, offsets: Any) -> Any:
        self._connection.stale = self._connection.world.postgres.snapshot()
        await asyncio.sleep(1.5)
        return await real(self, offsets)

    with patch.object(_Rebuild, "_attempt", attempt):
        yield


@contextmanager
def keyless_retry() -> Iterator[None]:
    real = Purchases._reserve

    async def reserve(self: Any, wish: Any) -> Any:
        try:
            return await self._inventory.reserve(wish)
        except orders.DEFINITE:
            raise Problem("unavailable") from None
        except RedisError:
            return await real(self, structs.replace(wish, order_id=new_order_id()))

    with patch.object(Purchases, "_reserve", reserve):
        yield


@contextmanager
def snapshot_before_the_end_offsets() -> Iterator[None]:
    real = Tail._read

    async def read(self: Any) -> None:
        self._at_end()
        with patch.object(self, "_at_end", lambda: None):
            await real(self)

    with patch.object(Tail, "_read", read):
        yield


@contextmanager
def slow_ends_and_no_second_look() -> Iterator[None]:
    """A broker that takes seconds to say where a topic ends, and streams that only look again when told to."""
    real = ConsumerPort.seek_to_end

    async def seek_to_end(self: Any) -> None:
        await asyncio.sleep(3.0)
        await real(self)

    with (
        patch.object(ConsumerPort, "seek_to_end", seek_to_end),
        patch("gateway.watching.stock_stream.READ_INTERVAL_S", math.inf),
        patch("tests.simulation.buyers.WATCHES_PER_WISH", 0.0),
    ):
        yield


@contextmanager
def dead_letter_without_a_row() -> Iterator[None]:
    from streams.app import dead_letter
    from streams.placing import Placing

    async def only_dead_letter(self: Any, placement: Any, reason: str) -> bool:
        await dead_letter(placement.record, self._resources.dead_letters, reason)
        return False

    with patch.object(Placing, "_dead_letter_and_fail", only_dead_letter):
        yield


def reserve_without_asking_for_the_run() -> AbstractContextManager[Any]:
    return _changed("reserve", "if stock[1] ~= run or stock[2] == 'closed'", "if stock[2] == 'closed'")


@contextmanager
def passing_states_are_the_records_fault() -> Iterator[None]:
    """Whatever Postgres itself answers buries the record."""
    states: dict[str, Any] = {"RECORDS_FAULT": (PostgresError,), "UNAVAILABLE": (OSError, TimeoutError, InterfaceError)}
    with patch.multiple("infra.postgres.batches", **states), patch.multiple("streams.placing", **states):
        yield


@contextmanager
def run_of_the_process_alone() -> Iterator[None]:
    """`run_id`, which stays when other data is put in force; and nobody says how far the books have gone."""

    real = RedisModel.become

    def become(self: RedisModel, _: str, copy: Any) -> None:
        real(self, self.process, copy)

    with (
        patch.object(RedisModel, "become", become),
        patch.object(Inventory, "_record_seen", lambda *_: None),
        patch.object(Keeper, "_record_seen", lambda *_: None),
    ):
        yield


@contextmanager
def end_not_waited_for() -> Iterator[None]:
    async def publish(self: Any, *_: Any) -> None:
        return None

    with patch.object(SettlementDesk, "_publish", publish):
        yield


@contextmanager
def rebuild_forgets_what_redis_holds() -> Iterator[None]:
    async def survivors(*_: Any) -> Any:
        return
        yield

    with patch("sale.books.rebuild.rebuild.survivors", survivors):
        yield


IN_SIMULATION = [
    Planted("ack before insert", ack_before_insert),
    Planted("idempotency outside the script", idempotency_outside_the_script),
    Planted("release twice", release_twice),
    Planted("new payment key per retry", new_payment_key_per_retry),
    Planted("asks when the key is forgotten", asks_when_the_key_is_forgotten),
    Planted("held entry deleted before the end is acknowledged", entry_deleted_before_the_end_is_acknowledged),
    Planted("relay copy without version", relay_copy_without_version),
    Planted("charge not found taken as declined", charge_not_found_taken_as_declined),
    Planted("409 from memory before the key is asked", sold_out_from_memory_before_the_key_is_asked),
    Planted(
        "release after the database refused",
        release_after_the_database_refused,
        replace(CALM, fault=0.01),
        falsified_books_and_nothing_else,
    ),
    Planted("rebuild reads Postgres before the offsets", rebuild_reads_postgres_before_the_offsets),
    Planted("keyless retry", keyless_retry),
    Planted("snapshot before end offsets", snapshot_before_the_end_offsets, CALM, slow_ends_and_no_second_look),
    Planted("dead letter without a row", dead_letter_without_a_row),
    Planted("passing states are the record's fault", passing_states_are_the_records_fault),
    Planted("reserve without asking for the run", reserve_without_asking_for_the_run),
    Planted("the run of the process alone", run_of_the_process_alone),
    Planted("end not waited for", end_not_waited_for),
    Planted("rebuild forgets what Redis holds", rebuild_forgets_what_redis_holds),
]

IN_SQL = [
    PlantedInSql(
        "no status guard",
        "settle_orders",
        (("AND o.status NOT IN ('confirmed', 'payment_failed', 'failed') AND o.status <> i.status", ""),),
    ),
    PlantedInSql(
        "bare ON CONFLICT",
        "place_orders",
        (
            (" AND NOT EXISTS (SELECT FROM orders o WHERE o.id = i.id)", ""),
            ("FROM inserted n WHERE n.status = 'awaiting_payment'", "FROM input n WHERE n.ord = ANY (accepted)"),
        ),
    ),
]
