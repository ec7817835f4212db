"""What processes hold in their hands: clients of the three stores and of the provider, each belonging to one actor.

Every call travels, has its effect at one instant (a step of the world, where anything may be killed), and travels back.
They stand in for redis-py, asyncpg, aiokafka and our Publisher and Offsets, as far as our code uses those.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from aiokafka.errors import KafkaConnectionError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from infra.payment_provider import Captured, ChargeOutcome, Declined, NotSent, Unknown
from infra.publisher import HEADERS
from infra.redis_trips import NotSent as RedisNotSent
from infra.redis_trips import raise_first_error
from schemas import topics
from schemas.topics import Topic

from .actors import CURRENT, Actor
from .log_model import LogRecord
from .postgres_model import PostgresModel

T = TypeVar("T")


class Port:
    """A connection of the current actor to something in the world."""

    def __init__(self, world: Any, actor: Actor | None = None) -> None:
        self.world = world
        self.actor = actor or CURRENT.get()

    async def travel(self) -> None:
        self._still_there()
        await asyncio.sleep(self.world.travel_s())
        while self.world.now_s() < self.actor.paused_until_s:  # noqa: ASYNC110 - virtual time
            await asyncio.sleep(self.actor.paused_until_s - self.world.now_s())
        self._still_there()

    def step(self, what: str) -> None:
        """Something has just had its effect. The actor may not live to learn of it."""
        self.world.step(self.actor, what)
        self._still_there()

    def _still_there(self) -> None:
        if not self.actor.alive:
            raise asyncio.CancelledError


class RedisPort(Port):
    """redis-py's client, as far as we use it; also its own pipelines and our round trips."""

    async def round_trip(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        if self.world.away("redis"):
            await self.travel()
            raise RedisNotSent("redis is away")
        return await self.ask_all(commands)

    async def replies(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        replies = await self.round_trip(commands) if commands else []
        raise_first_error(replies)
        return replies

    def pipeline(self, transaction: bool = False) -> "_Pipeline":
        return _Pipeline(self)

    async def aclose(self) -> None:
        pass

    async def ask(self, *command: Any) -> Any:
        [reply] = await self.ask_all([command])
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def ask_all(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        await self.travel()
        run = self.world.redis.run_id
        replies: list[Any] = []
        for command in commands:
            if self.world.away("redis") or self.world.redis.run_id != run:
                raise RedisConnectionError("connection lost")
            if self.world.chance(self.world.faults.late_redis):  # it times out here, and runs there yet
                self.world.later(lambda command=command: self._execute(command))
                raise RedisTimeoutError("no reply in time")
            replies.append(self._execute(command))
            self.step(f"redis {command[0]}")
            if self.world.chance(0.1):
                await self.travel()
        if self.world.chance(self.world.faults.lost_reply):
            raise RedisTimeoutError("the reply is lost")
        await self.travel()
        return replies

    def _execute(self, command: tuple[Any, ...]) -> Any:
        try:
            return self.world.redis.execute(*command)
        except ResponseError as error:
            return error

    async def info(self, section: str) -> dict[str, str]:
        return _info(await self.ask("INFO", section))

    async def hscan(self, key: str, cursor: int, count: int) -> tuple[int, dict[bytes, bytes]]:
        cursor_after, flat = await self.ask("HSCAN", key, cursor, "COUNT", count)
        return int(cursor_after), _pairs(flat)

    async def script_load(self, body: str) -> Any:
        return await self.ask("SCRIPT LOAD", body)

    def __getattr__(self, name: str) -> Any:
        async def call(*args: Any, **options: Any) -> Any:
            return await self.ask(*_command(name, args, options))

        return call


class _Pipeline:
    connection: Any = None

    def __init__(self, port: RedisPort) -> None:
        self._port = port
        self._commands: list[tuple[Any, ...]] = []
        self._names: list[str] = []

    async def __aenter__(self) -> "_Pipeline":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def execute_command(self, *command: Any) -> None:
        self._names.append("")
        self._commands.append(command)

    def __getattr__(self, name: str) -> Any:
        def queue(*args: Any, **options: Any) -> None:
            self._names.append(name)
            self._commands.append(_command(name, args, options))

        return queue

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        replies = await self._port.ask_all(self._commands)
        for reply in replies:
            if raise_on_error and isinstance(reply, Exception):
                raise reply
        convert: Mapping[str, Callable[[Any], Any]] = {"hgetall": _pairs, "info": _info}
        return [convert.get(name, lambda reply: reply)(reply) for name, reply in zip(self._names, replies, strict=True)]


def _command(name: str, args: tuple[Any, ...], options: Mapping[str, Any]) -> tuple[Any, ...]:
    match name:
        case "hmget":
            return ("HMGET", args[0], *args[1])
        case "zadd":
            flags = [flag.upper() for flag, on in options.items() if on]
            return ("ZADD", args[0], *flags, *(part for member, score in args[1].items() for part in (score, member)))
        case "zrangebyscore":
            return ("ZRANGEBYSCORE", *args, "LIMIT", options["start"], options["num"])
        case _:
            return (name.upper(), *args)


def _info(reply: bytes) -> dict[str, str]:
    return dict(line.split(":", 1) for line in reply.decode().split("\r\n") if ":" in line)


def _pairs(flat: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


class PostgresPort(Port):
    """asyncpg's pool and connection in one; `transaction` reads a snapshot, writes commit at once."""

    _frozen: PostgresModel | None = None
    _in_snapshot = False
    stale: PostgresModel | None = None  # what a planted bug reads instead of a snapshot of now

    async def fetch(self, statement: str, *args: Any) -> list[dict[str, Any]]:
        await self.travel()
        if self.world.away("postgres"):
            raise OSError("postgres is away")
        rows = self._model().run(statement, args)
        self.step("postgres")
        if self.world.chance(self.world.faults.lost_reply):
            raise OSError("connection lost after the commit")
        await self.travel()
        return rows

    def _model(self) -> PostgresModel:
        if self._in_snapshot and self._frozen is None:
            self._frozen = self.stale or self.world.postgres.snapshot()
        return self._frozen or self.world.postgres

    async def execute(self, statement: str, *args: Any) -> None:
        if "advisory_lock" in statement:
            while not await self._lock(args):  # noqa: ASYNC110 - as the server would keep it waiting
                await asyncio.sleep(0.1)
            return
        await self.fetch(statement, *args)

    async def fetchrow(self, statement: str, *args: Any) -> dict[str, Any] | None:
        rows = await self.fetch(statement, *args)
        return rows[0] if rows else None

    async def fetchval(self, statement: str, *args: Any) -> Any:
        if "advisory_lock" in statement:
            return await self._lock(args)
        row = await self.fetchrow(statement, *args)
        return None if row is None else next(iter(row.values()))

    async def _lock(self, key: tuple[int, ...]) -> bool:
        await self.travel()
        if self.world.away("postgres"):
            raise OSError("postgres is away")
        holder = self.world.postgres.locks.get(key)
        if holder is not None and holder.actor.alive:
            return False
        self.world.postgres.locks[key] = self
        self.step("postgres lock")
        return True

    async def close(self, timeout: float | None = None) -> None:
        locks = self.world.postgres.locks
        for key in [key for key, holder in locks.items() if holder is self]:
            del locks[key]

    @asynccontextmanager
    async def transaction(self, isolation: str = "", readonly: bool = False) -> AsyncIterator[None]:
        self._in_snapshot = isolation == "repeatable_read"
        try:
            yield
        finally:
            self._in_snapshot, self._frozen = False, None

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator["PostgresPort"]:
        yield PostgresPort(self.world, self.actor)

    async def cursor(self, statement: str, *args: Any) -> "_Cursor":
        return _Cursor(await self.fetch(statement, *args))


class _Cursor:
    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._rows = rows

    async def fetch(self, count: int) -> list[dict[str, Any]]:
        taken, self._rows = self._rows[:count], self._rows[count:]
        return taken


class PublisherPort(Port):
    """Our Publisher's face: records of a partition in order, each at least once; some come twice, some only much later."""

    def __init__(self, world: Any, actor: Actor | None = None) -> None:
        super().__init__(world, actor)
        self.unpublished = 0
        self._last_at_s: dict[int, float] = {}

    def publish(
        self, topic: Topic, key: str | bytes, value: bytes, headers: tuple[tuple[str, bytes], ...] = HEADERS
    ) -> "asyncio.Future[None]":
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        if not self.actor.alive:
            done.cancel()
            return done
        raw = key.encode() if isinstance(key, str) else key
        partition = self.world.log.partition_of(raw)
        at_s = max(self._last_at_s.get(partition, 0.0), loop.time() + self.world.travel_s())
        self._last_at_s[partition] = at_s
        self.unpublished += 1
        outlives = self.world.chance(0.5)  # whether it is in the broker's hands when its producer dies
        loop.call_at(at_s, self._append, topic.name, raw, value, headers, done, outlives)
        return done

    def _append(
        self, topic: str, key: bytes, value: bytes, headers: Any, done: "asyncio.Future[None]", outlives: bool
    ) -> None:
        loop = asyncio.get_running_loop()
        if not self.actor.alive and not outlives:
            return
        if self.world.away("kafka"):
            loop.call_later(0.05, self._append, topic, key, value, headers, done, outlives)
            return
        self.world.log.append(topic, key, value, headers)
        if self.world.chance(self.world.faults.duplicate):
            self.world.later(lambda: self.world.log.append(topic, key, value, headers))
        loop.call_later(self.world.travel_s(), self._acknowledge, done)
        self.world.step(self.actor, f"append to {topic}")

    def _acknowledge(self, done: "asyncio.Future[None]") -> None:
        if self.actor.alive:
            self.unpublished -= 1
            if not done.done():
                done.set_result(None)

    async def publish_all(self, records: Iterable[tuple[Topic, str | bytes, bytes]], headers: object = None) -> None:
        waiting = [self.publish(topic, key, value) for topic, key, value in records]
        if waiting:
            await asyncio.gather(*waiting)

    async def stop(self) -> None:
        pass


class OffsetsPort(Port):
    """Our Offsets' face."""

    async def committed(self, group: str, topic: Topic) -> dict[int, int]:
        return await self._ask(lambda: self.world.log.committed(group, topic.name))

    async def ends(self, topic: Topic) -> dict[int, int]:
        return await self._ask(lambda: self.world.log.ends(topic.name))

    async def begins(self, topic: Topic) -> dict[int, int]:
        return await self._ask(lambda: dict.fromkeys(self.world.log.ends(topic.name), 0))

    async def partitions(self, topic: Topic) -> list[int]:
        return list(self.world.log.ends(topic.name))

    async def close(self) -> None:
        pass

    async def _ask(self, answer: Callable[[], T]) -> T:
        await self.travel()
        if self.world.away("kafka"):
            raise KafkaConnectionError("kafka is away")
        answered = answer()
        self.step("kafka offsets")
        await self.travel()
        return answered


class ConsumerPort(Port):
    """aiokafka's consumer: of a group where one is given, then of all partitions of its topic."""

    def __init__(self, world: Any, topic: str | None = None, group: str | None = None) -> None:
        super().__init__(world)
        self._topic, self._group = topic, group
        self._positions: dict[Any, int] = {}

    async def start(self) -> None:
        await self.travel()
        if self._topic is not None and self._group is not None:
            committed = self.world.log.committed(self._group, self._topic)
            self._positions = {(self._topic, p): at for p, at in committed.items()}

    async def stop(self) -> None:
        pass

    def assign(self, partitions: Iterable[Any]) -> None:
        self._positions = {tuple(tp): 0 for tp in partitions}

    def seek(self, tp: Any, offset: int) -> None:
        self._positions[tuple(tp)] = offset

    def pause(self, *_: Any) -> None:
        pass

    def resume(self, *_: Any) -> None:
        pass

    async def position(self, tp: Any) -> int:
        return self._positions[tuple(tp)]

    async def getone(self, tp: Any) -> LogRecord:
        while True:
            fetched = await self.getmany(tp, timeout_ms=50, max_records=1)
            if fetched:
                return fetched[tuple(tp)][0]

    async def getmany(self, *only: Any, timeout_ms: int = 0, max_records: int = 1_000) -> dict[Any, list[LogRecord]]:
        await self.travel()
        found: dict[Any, list[LogRecord]] = {}
        for name, partition in [tuple(tp) for tp in only] or list(self._positions):
            at = self._positions[name, partition]
            limit = min(max_records, self.world.random.randint(1, 20))
            records = [] if self.world.away("kafka") else self.world.log.records[name][partition][at : at + limit]
            if records:
                found[name, partition] = records
                self._positions[name, partition] = at + len(records)
        if not found:
            await asyncio.sleep(timeout_ms / 1000)
        self.step("kafka fetch") if found else self._still_there()
        return found

    async def commit(self) -> None:
        await self.travel()
        if self.world.away("kafka"):
            raise KafkaConnectionError("kafka is away")
        assert self._topic is not None
        self.world.log.commit(self._group, self._topic, {p: at for (_, p), at in self._positions.items()})
        self.step("kafka commit")


class ProviderModel:
    """The payment provider's own books: the outcome of a key is fixed when it is first drawn, money moves once a key."""

    def __init__(self) -> None:
        self.declined: dict[str, bool] = {}
        self.captures: list[tuple[str, int, str]] = []

    def charge(self, key: str, amount_cents: int, currency: str, declines: bool) -> bool:
        """True when the money is (or was) taken."""
        if key not in self.declined:
            self.declined[key] = declines
            if not declines:
                self.captures.append((key, amount_cents, currency))
        return not self.declined[key]


class ProviderPort(Port):
    """Implements PaymentProvider under the weather of the world."""

    async def __aenter__(self) -> "ProviderPort":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def charge(self, order_id: str, amount_cents: int, currency: str) -> ChargeOutcome:
        await self.travel()
        if self.world.away("provider"):
            return NotSent(None, reached=False)
        weather = self.world.random.random()
        if weather < self.world.faults.not_sent:
            return NotSent(self.world.random.uniform(0.1, 1.0), reached=True)
        unknown = weather < self.world.faults.not_sent + self.world.faults.unknown
        if unknown and self.world.chance(0.5):
            await asyncio.sleep(self.world.random.choice((0.1, 5.0)))
            return Unknown("no answer")
        await asyncio.sleep(self.world.random.uniform(0.01, 1.5))
        self._still_there()
        taken = self.world.provider.charge(order_id, amount_cents, currency, self.world.chance(0.15))
        self.step("charge")
        if unknown:
            return Unknown("reset after it was done")
        await self.travel()
        return Captured(f"charge-{order_id}") if taken else Declined("declined")


class LogPort(Port):
    """infra.openings.Log's face."""

    async def was_wiped(self) -> bool:
        return False

    async def has_opening(self, product: int, epoch: int, opened_ms: int) -> bool:
        await self.travel()
        line = self.world.log.records[topics.ORDERS.name][self.world.log.partition_of(str(product).encode())]
        return any(b'"stock.opened"' in r.value and b'"epoch":%d,' % epoch in r.value for r in line)

    async def close(self) -> None:
        pass
