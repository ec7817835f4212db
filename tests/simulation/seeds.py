"""Seeds played, one after the other or shared out over processes: each a history, and what is wrong with its books."""

from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

from .world import Violation, World

SPAWN = get_context("spawn")  # a fork would share whatever threads its parent has


@dataclass(frozen=True, slots=True)
class Outcome:
    """One history: how long it was, and what is wrong with its books."""

    seed: int
    steps: int
    faults: int
    history: list[str]
    problems: list[str]

    def __str__(self) -> str:
        lines = [f"SEED={self.seed} replays this", *self.history, *self.problems]
        return "\n".join(lines if self.problems else [*self.history, f"seed {self.seed}: the books balance"])


def play(seed: int, steps: int = 1_000) -> Outcome:
    world = World(seed, steps)
    try:
        problems = world.run().problems
    except Violation as violation:
        problems = [str(violation)]
    return Outcome(seed, world.steps, len(world.history), world.history, problems)


def play_all(seeds: Iterable[int], processes: int | None = None) -> Iterable[Outcome]:
    with ProcessPoolExecutor(processes, mp_context=SPAWN) as pool:
        yield from pool.map(play, seeds, chunksize=5)
