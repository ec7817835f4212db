"""Acknowledges records strictly in offset order per partition, in whatever order their effects finish.

faust-streaming may commit past a record that is not acknowledged yet (its issue 606). So a record is acknowledged here only
after all records before it in its partition. Records belong to one assignment of their partition: after a rebalance late
work finishes its effects but acknowledges nothing, and the new owner reads the record again.
"""

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar


class Acknowledgeable(Protocol):
    """An item of a stream, such as faust's Event."""

    def ack(self) -> bool: ...


E = TypeVar("E", bound=Acknowledgeable)
Partition = TypeVar("Partition")

# Records in work, or done but behind one in work; all others stay in the log. A charge may hang for half a minute. In that
# time a member does some 50,000 others, whose acknowledgements (about 1.5 KB each) wait for it.
MAX_OPEN = 60_000
RESUME_BELOW = MAX_OPEN // 2


@dataclass(slots=True, eq=False)
class OpenRecord(Generic[E]):
    """One record that is taken but not acknowledged."""

    record: E
    assignment: "_Assignment[E]"
    done: bool = False


@dataclass(slots=True, eq=False)
class _Assignment(Generic[E]):
    """The open records of one partition under one assignment, in offset order."""

    open_records: deque[OpenRecord[E]] = field(default_factory=deque)
    revoked: bool = False


class InOrderAcks(Generic[E, Partition]):
    """`take` a record, and `finish` it when its effects are durable. `room` limits the `open` (unacknowledged) records."""

    def __init__(self) -> None:
        self._assignments: dict[Partition, _Assignment[E]] = {}
        self._room = asyncio.Event()
        self.open = 0
        self.finished = 0  # so far

    async def room(self) -> None:
        """Wait while too many records are open. The reader of the log waits here, so further records stay in the log.

        faust-streaming's `pause_partitions` does not work for this (0.15): it drops the fetched records of the partition,
        treats them as a gap in the log and commits past them; the relay would find those orders seconds later.
        """
        while self.open >= MAX_OPEN:
            self._room.clear()
            await self._room.wait()

    def take(self, partition: Partition, record: E) -> OpenRecord[E]:
        """Take the records of a partition in offset order."""
        assignment = self._assignments.setdefault(partition, _Assignment())
        open_record = OpenRecord(record, assignment)
        assignment.open_records.append(open_record)
        self.open += 1
        return open_record

    def finish(self, open_records: Iterable[OpenRecord[E]]) -> None:
        """The effects of these records are durable. Acknowledges every record that has no open one before it."""
        for open_record in open_records:
            open_record.done = True
            self.finished += 1
            assignment = open_record.assignment
            while assignment.open_records and assignment.open_records[0].done:
                head = assignment.open_records.popleft()
                if not assignment.revoked:
                    self.open -= 1
                    head.record.ack()
        self._make_room()

    def revoke(self, partitions: Iterable[Partition]) -> None:
        """These partitions are no longer ours: none of their records may be acknowledged."""
        for partition in partitions:
            assignment = self._assignments.pop(partition, None)
            if assignment is not None:
                assignment.revoked = True
                self.open -= len(assignment.open_records)
        self._make_room()

    def _make_room(self) -> None:
        if self.open < RESUME_BELOW:
            self._room.set()


class InWork(Generic[E]):
    """The records that one task has in work. Leaving the context without an error finishes them.

    Each record has one owner: a record that was handed on is no longer here, and handing it on again is an error.
    """

    def __init__(self, acks: InOrderAcks[E, Any], records: Iterable[OpenRecord[E]]) -> None:
        self._acks = acks
        self._records = dict.fromkeys(records)

    @property
    def records(self) -> list[OpenRecord[E]]:
        return list(self._records)

    def hand_on(self, records: Iterable[OpenRecord[E]]) -> None:
        """Another task owns these records from now on. Raises KeyError for a record that is not here."""
        for record in records:
            del self._records[record]

    def __enter__(self) -> "InWork[E]":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None:
            self._acks.finish(self.records)
