"""The log in process: partitions with append times, what groups have committed and who is in them. Its ports are kafka_ports.py."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from infra.kafka import publisher
from schemas import topics

PARTITIONS = 3
_NUMBERS = list(range(PARTITIONS))


@dataclass(frozen=True, slots=True)
class LogRecord:
    """As aiokafka's ConsumerRecord and as Faust's message: what our code reads of either."""

    topic: str
    partition: int
    offset: int
    key: bytes
    value: bytes
    headers: tuple[tuple[str, bytes], ...]
    timestamp: int

    @property
    def tp(self) -> tuple[str, int]:
        return self.topic, self.partition


@dataclass
class Group:
    """A group's coordinator. A member learns of a new generation late; what it commits under the old one is refused."""

    members: list[Any] = field(default_factory=list)
    generation: int = 0

    def join(self, member: Any) -> None:
        if member not in self.members:
            self.members.append(member)
            self.generation += 1

    def leave(self, member: Any) -> None:
        if member in self.members:
            self.members.remove(member)
            self.generation += 1

    def partitions_of(self, member: Any) -> list[int]:
        return [p for p in _NUMBERS if self.members[p % len(self.members)] is member]


def partition_of(key: bytes) -> int:
    return publisher.partition_of(key, PARTITIONS)


class LogModel:
    """One broker. `wipe` leaves it without topics, until `create`."""

    def __init__(self, clock_ms: Callable[[], int]) -> None:
        self._clock_ms = clock_ms
        self.groups = {group: Group() for group in topics.CONSUMED_BY}
        self.wipe()
        self.create()

    def wipe(self) -> None:
        """All data is gone: records, offsets, members."""
        self.exists = False
        self.records: dict[str, list[list[LogRecord]]] = {t.name: [[] for _ in _NUMBERS] for t in topics.ALL}
        self._begins = {t.name: [0] * PARTITIONS for t in topics.ALL}
        self._committed: dict[tuple[str, str], dict[int, int]] = {}
        for group in self.groups.values():
            group.members.clear()
            group.generation += 1

    def create(self) -> None:
        self.exists = True

    def cut(self, topic: str, before_ms: int) -> None:
        """What retention does: the oldest records are no longer kept."""
        for partition, line in enumerate(self.records[topic]):
            gone = sum(record.timestamp < before_ms for record in line)
            del line[:gone]
            self._begins[topic][partition] += gone

    def append(self, topic: str, key: bytes, value: bytes, headers: tuple[tuple[str, bytes], ...]) -> LogRecord:
        partition = partition_of(key)
        line = self.records[topic][partition]
        offset = self._begins[topic][partition] + len(line)
        record = LogRecord(topic, partition, offset, key, value, headers, self._clock_ms())
        line.append(record)
        return record

    def read(self, topic: str, partition: int, at: int, limit: int) -> list[LogRecord]:
        first = at - self._begins[topic][partition]
        return self.records[topic][partition][first : first + limit]

    def every(self, topic: str) -> list[LogRecord]:
        return [record for line in self.records[topic] for record in line]

    def committed(self, group: str, topic: str) -> dict[int, int]:
        return dict.fromkeys(_NUMBERS, 0) | self._committed.get((group, topic), {})

    def commit(self, group: str, topic: str, positions: dict[int, int]) -> None:
        self._committed.setdefault((group, topic), {}).update(positions)

    def begins(self, topic: str) -> dict[int, int]:
        return dict(enumerate(self._begins[topic]))

    def ends(self, topic: str) -> dict[int, int]:
        return {p: self._begins[topic][p] + len(line) for p, line in enumerate(self.records[topic])}

    def lag(self, group: str, topic: str) -> int:
        """As `unprocessed_from` sees it: a position outside of the log is its beginning."""
        committed, begins, ends = self.committed(group, topic), self._begins[topic], self.ends(topic)
        return sum(end - (committed[p] if begins[p] <= committed[p] <= end else begins[p]) for p, end in ends.items())
