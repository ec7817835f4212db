"""Our Publisher and Offsets, and aiokafka's consumer, over the model of the log."""

import asyncio
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any, TypeVar

from aiokafka.errors import KafkaConnectionError
from aiokafka.structs import OffsetAndTimestamp

from infra.kafka.publisher import HEADERS
from schemas.topics import Topic

from .actors import Actor
from .log_model import LogRecord, partition_of
from .port import Port

T = TypeVar("T")


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
        partition = partition_of(raw)
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
        if not self.world.log_answers():
            loop.call_later(0.05, self._append, topic, key, value, headers, done, outlives)
            return
        self.world.log.append(topic, key, value, headers)
        if self.world.chance(self.world.chances.duplicate):
            self.world.later(lambda: self._append_copy(topic, key, value, headers))
        loop.call_later(self.world.travel_s(), self._acknowledge, done)
        self.world.step(self.actor, f"append to {topic}")

    def _append_copy(self, *record: Any) -> None:
        if self.world.log.exists:
            self.world.log.append(*record)

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
        return await self._ask(lambda: self.world.log.begins(topic.name))

    async def partitions(self, topic: Topic) -> list[int]:
        return list(self.world.log.ends(topic.name))

    async def close(self) -> None:
        pass

    async def _ask(self, answer: Callable[[], T]) -> T:
        await self.travel()
        if not self.world.log_answers():
            raise KafkaConnectionError("kafka is away, or has no such topic")
        answered = answer()
        self.step("kafka offsets")
        await self.travel()
        return answered


class ConsumerPort(Port):
    """aiokafka's consumer: of a group where one is given, then of all partitions of its topic."""

    def __init__(self, world: Any, topic: str | None = None, group: str | None = None, reset: str = "earliest") -> None:
        super().__init__(world)
        self._topic, self._group, self._reset = topic, group, reset
        self._positions: dict[Any, int] = {}
        self._fetcher = SimpleNamespace()  # what `gather` sets on it changes costs, not what is read

    def subscribe(self, topics: list[str], listener: object = None) -> None:
        [self._topic] = topics

    async def start(self) -> None:
        await self._answered(with_topics=self._topic is not None)
        if self._topic is None:
            return
        committed = self.world.log.committed(self._group, self._topic) if self._group else {}
        self._positions = {
            (self._topic, p): committed.get(p, at) for p, at in self.world.log.begins(self._topic).items()
        }

    async def stop(self) -> None:
        pass

    async def topics(self) -> set[str]:
        await self._answered(with_topics=False)
        return set(self.world.log.records) if self.world.log.exists else set()

    def assign(self, partitions: Iterable[Any]) -> None:
        self._positions = {tuple(tp): 0 for tp in partitions}

    def seek(self, tp: Any, offset: int) -> None:
        self._positions[tuple(tp)] = offset

    async def seek_to_end(self) -> None:
        await self._answered()
        self._positions = {(name, p): self.world.log.ends(name)[p] for name, p in self._positions}
        self.step("kafka end")

    def pause(self, *_: Any) -> None:
        pass

    def resume(self, *_: Any) -> None:
        pass

    async def position(self, tp: Any) -> int:
        return self._positions[tuple(tp)]

    async def beginning_offsets(self, partitions: Iterable[Any]) -> dict[Any, int]:
        await self._answered()
        return {tp: self.world.log.begins(tp[0])[tp[1]] for tp in partitions}

    async def end_offsets(self, partitions: Iterable[Any]) -> dict[Any, int]:
        await self._answered()
        return {tp: self.world.log.ends(tp[0])[tp[1]] for tp in partitions}

    async def offsets_for_times(self, times: dict[Any, int]) -> dict[Any, OffsetAndTimestamp | None]:
        await self._answered()
        return {tp: self._first_since(tp, at_ms) for tp, at_ms in times.items()}

    def _first_since(self, tp: Any, at_ms: int) -> OffsetAndTimestamp | None:
        line = self.world.log.records[tp[0]][tp[1]]
        return next((OffsetAndTimestamp(r.offset, r.timestamp) for r in line if r.timestamp >= at_ms), None)

    async def _answered(self, *, with_topics: bool = True) -> None:
        await self.travel()
        if self.world.away("kafka") or (with_topics and not self.world.log.exists):
            raise KafkaConnectionError("kafka is away, or has no such topic")

    async def getone(self, tp: Any) -> LogRecord:
        while True:
            fetched = await self.getmany(tp, timeout_ms=50, max_records=1)
            if fetched:
                return fetched[tuple(tp)][0]

    async def getmany(self, *only: Any, timeout_ms: int = 0, max_records: int = 1_000) -> dict[Any, list[LogRecord]]:
        await self.travel()
        found: dict[Any, list[LogRecord]] = {}
        for name, partition in [tuple(tp) for tp in only] or list(self._positions):
            at = self._in_range(name, partition)
            limit = min(max_records, self.world.random.randint(1, 20))
            records = [] if self.world.away("kafka") else self.world.log.read(name, partition, at, limit)
            if records:
                found[name, partition] = records
                self._positions[name, partition] = at + len(records)
        if not found:
            await asyncio.sleep(timeout_ms / 1000)
        self.step("kafka fetch") if found else self._still_there()
        return found

    def _in_range(self, name: str, partition: int) -> int:
        """A position that the log does not have (any more) is reset, as the broker's refusal of it makes the client do."""
        at, log = self._positions[name, partition], self.world.log
        begin, end = log.begins(name)[partition], log.ends(name)[partition]
        if log.exists and not begin <= at <= end:
            at = self._positions[name, partition] = begin if self._reset == "earliest" else end
        return at

    async def commit(self) -> None:
        await self._answered()
        assert self._topic is not None
        self.world.log.commit(self._group, self._topic, {p: at for (_, p), at in self._positions.items()})
        self.step("kafka commit")
