"""Acknowledgements leave in offset order per partition, however work finishes; what is revoked acknowledges nothing."""

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from streams import acks
from streams.acks import InOrderAcks, Ticket


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

    def take(self, partition: int) -> Ticket[Message]:
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
    tickets = [reader.take(partition) for partition in partitions]
    finished: set[tuple[int, int]] = set()
    for number in order:
        reader.acks.finish([tickets[number]])
        finished.add((tickets[number].record.partition, tickets[number].record.offset))
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
    ticket, following = reader.take(0), reader.take(0)
    reader.acks.finish([ticket, ticket])
    reader.acks.finish([ticket])
    assert reader.offsets(0) == [0]
    reader.acks.finish([following])
    assert reader.offsets(0) == [0, 1]


async def test_a_reader_with_too_much_open_waits_until_half_is_acknowledged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded by what is left in the log."""
    monkeypatch.setattr(acks, "MAX_OPEN", 10)
    monkeypatch.setattr(acks, "RESUME_BELOW", 5)
    reader = Reader()
    tickets = [reader.take(0) for _ in range(10)]
    waiting = asyncio.create_task(reader.acks.room())
    reader.acks.finish(tickets[1:])  # all but the head: still open
    await asyncio.sleep(0)
    assert not waiting.done()
    reader.acks.finish(tickets[:1])
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

    tickets = Bundle("tickets")

    def __init__(self) -> None:
        super().__init__()
        self.reader = Reader()
        self.taken: list[Ticket[Message]] = []

    @rule(target=tickets, partition=st.integers(0, 2))
    def take(self, partition: int) -> Ticket[Message]:
        ticket = self.reader.take(partition)
        self.taken.append(ticket)
        return ticket

    @rule(done=st.lists(tickets, max_size=5))
    def finish(self, done: list[Ticket[Message]]) -> None:
        self.reader.acks.finish(done)

    @rule(partition=st.integers(0, 2))
    def revoke(self, partition: int) -> None:
        self.reader.acks.revoke([partition])
        self.reader.assignment[partition] += 1

    @invariant()
    def open_is_what_is_taken_and_not_acknowledged(self) -> None:
        current = [t for t in self.taken if t.record.assignment == self.reader.assignment[t.record.partition]]
        assert self.reader.acks.open == sum(ticket.record not in self.reader.acked for ticket in current)

    @invariant()
    def acked_is_the_finished_prefix_of_each_assignment(self) -> None:
        by_assignment: dict[tuple[int, int], list[Ticket[Message]]] = defaultdict(list)
        for ticket in self.taken:
            by_assignment[ticket.record.partition, ticket.record.assignment].append(ticket)
        for (partition, assignment), tickets in by_assignment.items():
            acked = [m for m in self.reader.acked if (m.partition, m.assignment) == (partition, assignment)]
            assert acked == [ticket.record for ticket in tickets[: len(acked)]]
            assert all(ticket.done for ticket in tickets[: len(acked)])
            current = self.reader.assignment[partition] == assignment
            if current and len(acked) < len(tickets):
                assert not tickets[len(acked)].done


TestAssignments = Assignments.TestCase
