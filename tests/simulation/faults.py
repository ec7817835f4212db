"""What breaks: one fault at a step, drawn by its weight. Everything here is what a machine, a network or an operator can do."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sale.books import keys
from schemas import topics
from schemas.ids import ProductId

from .actors import Actor
from .redis_model import NOTHING, Copy

HOUR_S, DAY_S = 3_600.0, 86_400.0
NO_EVENT = (b"\x80\x04random", b"null", b'{"type":"order.placed"}', b'{"type":"from.the.future"}', b"[" * 200)


@dataclass(frozen=True)
class Chances:
    """Each asked where it says."""

    fault: float = 0.025  # a kill, an outage, a restart ... after a step
    lost_reply: float = 0.01  # of a store, after the effect
    late_redis: float = 0.005  # a command times out, and runs yet
    duplicate: float = 0.03  # of a record
    slow: float = 0.05  # of a trip
    not_sent: float = 0.05
    unknown: float = 0.15  # of an attempt to charge
    refused: float = 0.01  # of orders, by the database, whatever is tried


CALM = Chances(*[0.0] * 8)


class Striker:
    """The faults of one world, and what each of them makes forgivable."""

    def __init__(self, world: Any) -> None:
        self._world = world
        self._random = world.random
        self._copies: list[Copy] = []
        self._before_reservations: deque[tuple[str, Copy]] = deque(maxlen=6)
        self._leap_s = self._random.choice((0.0, 0.0, 0.0, 25 * HOUR_S, 8 * DAY_S))
        self.keeps_for_ever = self._random.random() < 0.6  # else orders and order-status are cut after a week
        self.day = 0  # how often time has leapt
        self.lost: set[str] = set()  # orders that no store knew any more: the design forgives those, and only those
        self.too_high: dict[ProductId, int] = {}  # products whose books were falsified, by their epoch
        self.poison: set[bytes] = set()  # keys of records that nobody can process
        self._faults: list[tuple[int, Callable[[Actor], None]]] = [
            (8, self._kill_this),
            (6, self._kill_any),
            (2, self._pause),
            (3, self._change_members),
            (1, self._second),
            (3, self._away),
            (1, self._restart_redis),
            (1, self._wipe_redis),
            (2, self._old_copy),
            (2, self._cut_redis),
            (2, self._go_back),
            (1, self._power_cut),
            (1, self._wipe_kafka),
            (2, self._poison),
            (1, self._falsify),
            (1, self._leap),
        ]

    def strike(self, actor: Actor) -> None:
        weights, faults = zip(*self._faults, strict=True)
        self._random.choices(faults, weights)[0](actor)

    def before_reservation(self, order_id: str) -> None:
        """What Redis knows before it learns of this order."""
        if self._world.chances.fault:
            self._before_reservations.append((order_id, self._world.redis.snapshot()))

    def heal(self) -> None:
        """What an operator does once he knows: falsified books of which nobody has noticed anything are made anew."""
        for product, epoch in self.too_high.items():
            stock = self._world.redis.data.get(keys.stock(product), {})
            if stock.get("epoch") == str(epoch) and not self._world.verdict.refused_by_database(product, epoch):
                stock["state"] = "closed"

    def _kill_this(self, actor: Actor) -> None:
        self._world.processes.kill(actor)

    def _kill_any(self, _: Actor) -> None:
        self._world.processes.kill(self._random.choice(self._world.processes.all))

    def _pause(self, actor: Actor) -> None:
        actor.paused_until_s = self._world.now_s() + self._random.uniform(0.5, 12.0)
        self._world.note(f"pause {actor.name}")

    def _change_members(self, _: Actor) -> None:
        """Partitions move: a member is added or killed, or one is thrown out and does not know yet."""
        group = self._random.choice((topics.ORDER_STAGE_GROUP, topics.PAYMENT_STAGE_GROUP))
        members = self._world.log.groups[group].members
        if members and self._world.chance(0.4):
            self._world.note(f"a member of {group} is thrown out")
            self._world.log.groups[group].leave(self._random.choice(members))
        else:
            self._world.processes.add_or_remove_member(group)

    def _second(self, _: Actor) -> None:
        self._world.processes.replace(self._random.choice(("relay", "reconciler", "projector")))

    def _away(self, _: Actor) -> None:
        what = self._random.choice(("redis", "postgres", "kafka", "provider"))
        self._world.go_away(what, self._random.uniform(0.1, 8.0))
        self._world.note(f"{what} away")

    def _restart_redis(self, _: Actor) -> None:
        self._world.redis.restart(self._world.run_name())
        self._world.note("redis restarts")

    def _wipe_redis(self, _: Actor) -> None:
        self._world.note("redis wiped")
        self._lose(NOTHING)

    def _old_copy(self, _: Actor) -> None:
        if self._copies and self._world.chance(0.3):
            self._world.note("redis comes back as an old copy")
            self._lose(self._random.choice(self._copies))
        else:
            self._copies.append(self._world.redis.snapshot())

    def _go_back(self, _: Actor) -> None:
        """A replica that had stopped following is put in force on the live primary: its process knows of no change."""
        if self._copies:
            self._world.note("redis goes back to an old copy, its process lives on")
            with self._losing():
                self._world.redis.become(self._world.run_name(), self._random.choice(self._copies))

    def _cut_redis(self, _: Actor) -> None:
        """The tail of its file is lost, down to the log's height: of what is not on the log yet, Redis knows nothing."""
        on_log = self._on_log()
        unpublished = [copy for order_id, copy in self._before_reservations if order_id not in on_log]
        if unpublished or self._before_reservations:
            self._world.note("redis is cut to the log's height")
            self._lose(unpublished[0] if unpublished else self._before_reservations[-1][1])

    def _power_cut(self, _: Actor) -> None:
        """While Postgres is away: nobody has finished anything, and Redis is empty afterwards."""
        outage_s = self._random.uniform(1.5, 6.0)
        self._world.go_away("postgres", outage_s)
        self._world.note("postgres away, and then a power cut")

        def cut() -> None:
            if self._world.chances is not CALM:
                self._world.processes.kill_all()
                self._lose(NOTHING)

        self._world.loop.call_later(self._random.uniform(1.0, outage_s), cut)

    def _wipe_kafka(self, _: Actor) -> None:
        self._world.note("kafka wiped")
        with self._losing():
            self._world.log.wipe()
        self._world.go_away("kafka", self._random.uniform(0.1, 4.0))

    def _poison(self, _: Actor) -> None:
        """A record that nobody can process, or that is on a topic where it does not belong."""
        if not self._world.log_answers():
            return
        topic, value = self._random.choice((topics.ORDERS, topics.PAYMENTS)), self._random.choice(NO_EVENT)
        if self._world.chance(0.4):
            value = b'{"type":"stock.changed","product_id":1,"epoch":1,"version":1,"available":1,"at_ms":1}'
        record = self._world.log.append(topic.name, self._random.randbytes(4), value, ())
        self.poison.add(record.key)
        self._world.note(f"poison: {record.topic} {record.partition} {record.offset}")

    def _falsify(self, _: Actor) -> None:
        """Redis believes in units that do not exist; then the database must refuse, and the books be made anew."""
        product = self._random.choice(self._world.products)
        stock = self._world.redis.data.get(keys.stock(product), {})
        if stock.get("run") == self._world.redis.run and stock["state"] != "closed" and product not in self.too_high:
            for name in ("initial", "available"):
                stock[name] = str(int(stock[name]) + 3)
            self.too_high[product] = int(stock["epoch"])
            self._world.note(f"redis believes in 3 units too many of {product}")

    def _leap(self, _: Actor) -> None:
        """Everything stands still for a day or more: past the lifetime of keys, and past what the topics keep.

        Some processes may sleep through it and go on, as on a machine that is suspended. Clients do not wait for a gateway that long.
        """
        if not self._leap_s:
            return
        self._world.note(f"{self._leap_s / HOUR_S:.0f} hours pass while nothing runs")
        self._world.let_arrive()
        suspended = self._world.chance(0.5)
        for actor in self._world.processes.all:
            if actor in self._world.processes.gateways or not suspended or self._world.chance(0.3):
                self._world.processes.kill(actor)
        self.day += 1
        self._world.loop.now_s += self._leap_s
        with self._losing():
            for topic in topics.ALL:
                for_ever = topic.retention_ms == topics.FOR_EVER
                kept_ms = 7 * topics.DAY_MS if for_ever and not self.keeps_for_ever else topic.retention_ms
                if kept_ms != topics.FOR_EVER:
                    self._world.log.cut(topic.name, self._world.now_ms() - kept_ms)
        self._leap_s = 0.0

    def _lose(self, copy: Copy) -> None:
        with self._losing():
            self._world.redis.restart(self._world.run_name(), copy)

    def _losing(self) -> "_Losing":
        return _Losing(self)

    def known(self) -> set[str]:
        """Orders that some store knows."""
        held = (order_id for p in self._world.products for order_id in self._world.redis.data.get(keys.held(p), {}))
        return {*held, *self._on_log(), *self._world.postgres.orders}

    def _on_log(self) -> set[str]:
        return {record.key.decode("latin-1") for record in self._world.log.every(topics.ORDERS.name)}


class _Losing:
    """Around the moment at which a store loses data: what is known to nobody afterwards is lost."""

    def __init__(self, striker: Striker) -> None:
        self._striker = striker

    def __enter__(self) -> None:
        self._before = self._striker.known()

    def __exit__(self, *_: object) -> None:
        self._striker.lost |= self._before - self._striker.known()


__all__ = ["CALM", "Chances", "Striker"]
