"""The log in process: partitions with append times, and what groups have committed. Its ports are in ports.py."""

from collections.abc import Callable
from dataclasses import dataclass
from zlib import crc32

from schemas import topics

PARTITIONS = 3


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


class LogModel:
    """One broker."""

    def __init__(self, clock_ms: Callable[[], int]) -> None:
        self._clock_ms = clock_ms
        self.records: dict[str, list[list[LogRecord]]] = {t.name: [[] for _ in range(PARTITIONS)] for t in topics.ALL}
        self._committed: dict[tuple[str, str], dict[int, int]] = {}

    def partition_of(self, key: bytes) -> int:
        return crc32(key) % PARTITIONS

    def append(self, topic: str, key: bytes, value: bytes, headers: tuple[tuple[str, bytes], ...]) -> LogRecord:
        partition = self.partition_of(key)
        line = self.records[topic][partition]
        record = LogRecord(topic, partition, len(line), key, value, headers, self._clock_ms())
        line.append(record)
        return record

    def committed(self, group: str, topic: str) -> dict[int, int]:
        return dict.fromkeys(range(PARTITIONS), 0) | self._committed.get((group, topic), {})

    def commit(self, group: str, topic: str, positions: dict[int, int]) -> None:
        self._committed.setdefault((group, topic), {}).update(positions)

    def ends(self, topic: str) -> dict[int, int]:
        return {p: len(line) for p, line in enumerate(self.records[topic])}

    def lag(self, group: str, topic: str) -> int:
        return sum(self.ends(topic).values()) - sum(self.committed(group, topic).values())
