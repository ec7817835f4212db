"""Records taken in, acknowledged strictly in offset order per partition, however their effects finish.

faust-streaming may commit past a record whose acknowledgement is still open (its issue 606); so a record is acknowledged
here only when everything before it in its partition has been. Records belong to one assignment of their partition: after a
rebalance late work finishes its effects and acknowledges nothing, the new owner reads the record again.
"""

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar


class Acknowledgeable(Protocol):
    """What a stream hands over; faust's Event fits."""

    def ack(self) -> bool: ...


E = TypeVar("E", bound=Acknowledgeable)
Partition = TypeVar("Partition")

# Records in work, or done behind one that still is: more are left in the log. A charge may hang for half a minute, and in
# that time a member does some 50,000 others, whose acknowledgements (about 1.5 KB each) wait for it.
MAX_OPEN = 60_000
RESUME_BELOW = MAX_OPEN // 2


@dataclass(slots=True, eq=False)
class OpenRecord(Generic[E]):
    """One record in work."""

    record: E
    assignment: "_Assignment[E]"
    done: bool = False


@dataclass(slots=True, eq=False)
class _Assignment(Generic[E]):
    """The open records of one partition under one assignment, in offset order."""

    open_records: deque[OpenRecord[E]] = field(default_factory=deque)
    revoked: bool = False


class InOrderAcks(Generic[E, Partition]):
    """`take` a record, `finish` it when its effects are durable; `room` bounds what is `open`: taken, not acknowledged."""

    def __init__(self) -> None:
        self._assignments: dict[Partition, _Assignment[E]] = {}
        self._room = asyncio.Event()
        self.open = 0

    async def room(self) -> None:
        """Wait while too much is open. Whoever reads the log waits here, so what is left in it is what is not taken.

        faust-streaming's own `pause_partitions` is no way to wait: it drops what it has fetched of the partition, takes that
        for a gap in the log and commits past it (its 0.15; the relay would find the orders, seconds later).
        """
        while self.open >= MAX_OPEN:
            self._room.clear()
            await self._room.wait()

    def take(self, partition: Partition, record: E) -> OpenRecord[E]:
        """Records of a partition must be taken in offset order."""
        assignment = self._assignments.setdefault(partition, _Assignment())
        open_record = OpenRecord(record, assignment)
        assignment.open_records.append(open_record)
        self.open += 1
        return open_record

    def finish(self, open_records: Iterable[OpenRecord[E]]) -> None:
        """The effects of these records are durable. Acknowledges every record that has no open one before it."""
        for open_record in open_records:
            open_record.done = True
            assignment = open_record.assignment
            while assignment.open_records and assignment.open_records[0].done:
                head = assignment.open_records.popleft()
                if not assignment.revoked:
                    self.open -= 1
                    head.record.ack()
        self._make_room()

    def revoke(self, partitions: Iterable[Partition]) -> None:
        """These partitions are no longer ours: nothing of theirs may be acknowledged any more."""
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
    """The records that one task has in work. Leaving it acknowledges them, unless by an error.

    Each record has one owner: what is handed on is no longer ours, and handing it on again is an error.
    """

    def __init__(self, acks: InOrderAcks[E, Any], records: Iterable[OpenRecord[E]]) -> None:
        self._acks = acks
        self._records = dict.fromkeys(records)

    @property
    def records(self) -> list[OpenRecord[E]]:
        return list(self._records)

    def hand_on(self, records: Iterable[OpenRecord[E]]) -> None:
        """Another task owns these records from now on. Raises KeyError for one that is not ours."""
        for record in records:
            del self._records[record]

    def __enter__(self) -> "InWork[E]":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None:
            self._acks.finish(self.records)
