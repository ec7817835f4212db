"""Records taken in, acknowledged strictly in offset order per partition, however their effects finish.

faust-streaming may commit past a record whose acknowledgement is still open (its issue 606); so a record is acknowledged
here only when everything before it in its partition has been. Records belong to one assignment of their partition: after a
rebalance late work finishes its effects and acknowledges nothing, the new owner reads the record again.
"""

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar


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


class InOrderAcks(Generic[E, Partition]):
    """`take` a record, `finish` its ticket when its effects are durable; `room` bounds what is `open`: taken, not acknowledged."""

    def __init__(self) -> None:
        self._lines: dict[Partition, _Line[E]] = {}
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

    def take(self, partition: Partition, record: E) -> Ticket[E]:
        """Records of a partition must be taken in offset order."""
        line = self._lines.setdefault(partition, _Line())
        ticket = Ticket(record, line)
        line.tickets.append(ticket)
        self.open += 1
        return ticket

    def finish(self, tickets: Iterable[Ticket[E]]) -> None:
        """The effects of these records are durable. Acknowledges every record that has no open one before it."""
        for ticket in tickets:
            ticket.done = True
            line = ticket.line
            while line.tickets and line.tickets[0].done:
                head = line.tickets.popleft()
                if not line.revoked:
                    self.open -= 1
                    head.record.ack()
        self._make_room()

    def revoke(self, partitions: Iterable[Partition]) -> None:
        """These partitions are no longer ours: nothing of theirs may be acknowledged any more."""
        for partition in partitions:
            line = self._lines.pop(partition, None)
            if line is not None:
                line.revoked = True
                self.open -= len(line.tickets)
        self._make_room()

    def _make_room(self) -> None:
        if self.open < RESUME_BELOW:
            self._room.set()
