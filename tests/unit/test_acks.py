"""Acknowledgements leave in offset order per partition, however work finishes; what is revoked acknowledges nothing."""

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from streams import acks
from streams.acks import InOrderAcks, OpenRecord


@dataclass(eq=False)
class Message:
    """A record of a partition, read under one assignment of it."""

    partition: int
    offset: int
    assignment: int
    acked: list["Message"] = field(repr=False)

    def ack(self) -> bool:
        self.acked.append(self)
        return True


class Reader:
    """Takes records in offset order, as a consumer hands them over, and remembers what it was asked to do."""

    def __init__(self) -> None:
        self.acked: list[Message] = []
        self.acks: InOrderAcks[Message, int] = InOrderAcks()
        self._next: dict[int, int] = defaultdict(int)
        self.assignment: dict[int, int] = defaultdict(int)

    def take(self, partition: int) -> OpenRecord[Message]:
        offset = self._next[partition]
        self._next[partition] += 1
        return self.acks.take(partition, Message(partition, offset, self.assignment[partition], self.acked))

    def offsets(self, partition: int) -> list[int]:
        return [message.offset for message in self.acked if message.partition == partition]


@given(st.permutations(list(range(12))), st.lists(st.integers(0, 2), min_size=12, max_size=12))
def test_whatever_the_order_of_finishing_the_order_of_acks_is_that_of_offsets(
    order: list[int], partitions: list[int]
) -> None:
    """After every single finish what is acknowledged is a prefix, and it reaches as far as it may."""
    reader = Reader()
    open_records = [reader.take(partition) for partition in partitions]
    finished: set[tuple[int, int]] = set()
    for number in order:
        reader.acks.finish([open_records[number]])
        finished.add((open_records[number].record.partition, open_records[number].record.offset))
        for partition in range(3):
            acked = reader.offsets(partition)
            assert acked == list(range(len(acked)))
            assert (partition, len(acked)) not in finished, "a finished head was kept back"
    assert len(reader.acked) == 12
    assert reader.acks.open == 0


def test_a_slow_first_record_holds_back_its_partition_and_no_other() -> None:
    reader = Reader()
    slow = reader.take(0)
    fast = [reader.take(0) for _ in range(3)]
    other = reader.take(1)
    reader.acks.finish([*fast, other])
    assert [(m.partition, m.offset) for m in reader.acked] == [(1, 0)]
    reader.acks.finish([slow])
    assert reader.offsets(0) == [0, 1, 2, 3]


def test_late_work_of_a_revoked_partition_acknowledges_nothing() -> None:
    """The new owner reads those records again; an ack under its feet would lose them."""
    reader = Reader()
    late, kept = reader.take(0), reader.take(1)
    reader.acks.revoke([0])
    again = reader.take(0)
    reader.acks.finish([late, kept])
    assert [(m.partition, m.offset) for m in reader.acked] == [(1, 0)]
    reader.acks.finish([again])
    assert reader.offsets(0) == [again.record.offset]


def test_finishing_twice_acknowledges_once() -> None:
    reader = Reader()
    open_record, following = reader.take(0), reader.take(0)
    reader.acks.finish([open_record, open_record])
    reader.acks.finish([open_record])
    assert reader.offsets(0) == [0]
    reader.acks.finish([following])
    assert reader.offsets(0) == [0, 1]


async def test_a_reader_with_too_much_open_waits_until_half_is_acknowledged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded by what is left in the log."""
    monkeypatch.setattr(acks, "MAX_OPEN", 10)
    monkeypatch.setattr(acks, "RESUME_BELOW", 5)
    reader = Reader()
    open_records = [reader.take(0) for _ in range(10)]
    waiting = asyncio.create_task(reader.acks.room())
    reader.acks.finish(open_records[1:])  # all but the head: still open
    await asyncio.sleep(0)
    assert not waiting.done()
    reader.acks.finish(open_records[:1])
    async with asyncio.timeout(1):
        await waiting


async def test_what_is_revoked_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Late work of a lost partition is no longer counted, not even when it ends."""
    monkeypatch.setattr(acks, "MAX_OPEN", 2)
    monkeypatch.setattr(acks, "RESUME_BELOW", 1)
    reader = Reader()
    late = [reader.take(0) for _ in range(2)]
    waiting = asyncio.create_task(reader.acks.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    reader.acks.revoke([0])
    async with asyncio.timeout(1):
        await waiting
    reader.acks.finish(late)
    assert reader.acks.open == 0


class Assignments(RuleBasedStateMachine):
    """Records, work, revocations and new assignments in any order."""

    open_records = Bundle("open_records")

    def __init__(self) -> None:
        super().__init__()
        self.reader = Reader()
        self.taken: list[OpenRecord[Message]] = []

    @rule(target=open_records, partition=st.integers(0, 2))
    def take(self, partition: int) -> OpenRecord[Message]:
        open_record = self.reader.take(partition)
        self.taken.append(open_record)
        return open_record

    @rule(done=st.lists(open_records, max_size=5))
    def finish(self, done: list[OpenRecord[Message]]) -> None:
        self.reader.acks.finish(done)

    @rule(partition=st.integers(0, 2))
    def revoke(self, partition: int) -> None:
        self.reader.acks.revoke([partition])
        self.reader.assignment[partition] += 1

    @invariant()
    def open_is_what_is_taken_and_not_acknowledged(self) -> None:
        current = [t for t in self.taken if t.record.assignment == self.reader.assignment[t.record.partition]]
        assert self.reader.acks.open == sum(open_record.record not in self.reader.acked for open_record in current)

    @invariant()
    def acked_is_the_finished_prefix_of_each_assignment(self) -> None:
        by_assignment: dict[tuple[int, int], list[OpenRecord[Message]]] = defaultdict(list)
        for open_record in self.taken:
            by_assignment[open_record.record.partition, open_record.record.assignment].append(open_record)
        for (partition, assignment), open_records in by_assignment.items():
            acked = [m for m in self.reader.acked if (m.partition, m.assignment) == (partition, assignment)]
            assert acked == [open_record.record for open_record in open_records[: len(acked)]]
            assert all(open_record.done for open_record in open_records[: len(acked)])
            current = self.reader.assignment[partition] == assignment
            if current and len(acked) < len(open_records):
                assert not open_records[len(acked)].done


TestAssignments = Assignments.TestCase
