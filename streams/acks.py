"""Records taken in, acknowledged strictly in offset order per partition, however their effects finish.

faust-streaming may commit past a record whose acknowledgement is still open (its issue 606); so a record is acknowledged
here only when everything before it in its partition has been. Records belong to one assignment of their partition: after a
rebalance late work finishes its effects and acknowledges nothing, the new owner reads the record again.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar


class Acknowledgeable(Protocol):
    """What a stream hands over; faust's Event fits."""

    def ack(self) -> bool: ...


E = TypeVar("E", bound=Acknowledgeable)
Partition = TypeVar("Partition")

MAX_UNACKED = 5_000  # records of a partition in work: more are left in the log
RESUME_BELOW = MAX_UNACKED // 2


@dataclass(slots=True, eq=False)
class Ticket(Generic[E]):
    """One record in work."""

    record: E
    line: "_Line[E]"
    done: bool = False


@dataclass(slots=True, eq=False)
class _Line(Generic[E]):
    """The open records of one partition under one assignment, in offset order."""

    tickets: deque[Ticket[E]] = field(default_factory=deque)
    revoked: bool = False
    paused: bool = False


class InOrderAcks(Generic[E, Partition]):
    """`take` a record, `finish` its ticket when its effects are durable; `pause` and `resume` bound what is open."""

    def __init__(self, pause: Callable[[Partition], None], resume: Callable[[Partition], None]) -> None:
        self._pause = pause
        self._resume = resume
        self._lines: dict[Partition, _Line[E]] = {}

    def take(self, partition: Partition, record: E) -> Ticket[E]:
        """Records of a partition must be taken in offset order."""
        line = self._lines.setdefault(partition, _Line())
        ticket = Ticket(record, line)
        line.tickets.append(ticket)
        if len(line.tickets) >= MAX_UNACKED and not line.paused:
            line.paused = True
            self._pause(partition)
        return ticket

    def finish(self, tickets: Iterable[Ticket[E]]) -> None:
        """The effects of these records are durable. Acknowledges every record that has no open one before it."""
        for ticket in tickets:
            ticket.done = True
            line = ticket.line
            while line.tickets and line.tickets[0].done:
                head = line.tickets.popleft()
                if not line.revoked:
                    head.record.ack()
        for partition, line in self._lines.items():
            if line.paused and len(line.tickets) < RESUME_BELOW:
                line.paused = False
                self._resume(partition)

    def revoke(self, partitions: Iterable[Partition]) -> None:
        """These partitions are no longer ours: nothing of theirs may be acknowledged any more."""
        for partition in partitions:
            line = self._lines.pop(partition, None)
            if line is not None:
                line.revoked = True
                if line.paused:
                    self._resume(partition)

    @property
    def open(self) -> int:
        """Records taken and not yet acknowledged."""
        return sum(len(line.tickets) for line in self._lines.values())
