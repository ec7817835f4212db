"""A fluid simulation of the pipeline on one machine, from its cores, the CPU per order at each station, and the load.

Orders flow through gateway, order stage, payment stage and projector, each with a queue. A process uses at most one core. If
the machine has too few cores, all processes get equal shares, as in the kernel.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

STEP_S = 0.05
HALVINGS = 40


@dataclass(frozen=True, slots=True)
class Station:
    """`own_ms`: CPU per order in its own processes; `beside_ms`: the CPU that it causes in servers and other processes."""

    name: str
    processes: int
    own_ms: float
    beside_ms: float = 0.0

    @property
    def total_ms(self) -> float:
        return self.own_ms + self.beside_ms

    def most_per_s(self, level: float) -> float:
        """Orders a second if each process gets `level` of a core."""
        return self.processes * min(level, 1.0) * 1000 / self.own_ms if self.own_ms else float("inf")


@dataclass(slots=True)
class Passed:
    """Orders that passed the first station (accepted) and the last (ended), at the end of each step."""

    accepted: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)


def flows(stations: Sequence[Station], wanted_per_s: Sequence[float], cores: float) -> list[float]:
    """The orders a second of each station that would do `wanted_per_s`, with the CPU shared evenly."""

    def at(level: float) -> list[float]:
        return [min(want, s.most_per_s(level)) for s, want in zip(stations, wanted_per_s, strict=True)]

    def used(done: Sequence[float]) -> float:
        return sum(s.total_ms * per_s for s, per_s in zip(stations, done, strict=True)) / 1000

    if used(at(1.0)) <= cores:
        return at(1.0)
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        level = (low + high) / 2
        low, high = (level, high) if used(at(level)) <= cores else (low, level)
    return at(low)


def simulate(
    stations: Sequence[Station], cores: float, arriving_per_s: float, seconds: float, backlog: float = 0.0
) -> Passed:
    """Arrivals at the first station (infinite: as many as it takes); `backlog` orders wait before the second."""
    queues = [0.0] * len(stations)
    if backlog:
        queues[1] = backlog
    passed, accepted, ended = Passed(), 0.0, 0.0
    for _ in range(round(seconds / STEP_S)):
        queues[0] += arriving_per_s * STEP_S
        done = flows(stations, [queue / STEP_S for queue in queues], cores)
        for place, per_s in enumerate(done):
            queues[place] -= per_s * STEP_S
            if place + 1 < len(queues):
                queues[place + 1] += per_s * STEP_S
        accepted, ended = accepted + done[0] * STEP_S, ended + done[-1] * STEP_S
        passed.accepted.append(accepted)
        passed.ended.append(ended)
    return passed
