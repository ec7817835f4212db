"""Seeds in, failing ones out with their faults: `python -m tests.simulation --seeds 1000`, and `--seed 17` replays one.

Exit code 1 when a seed failed. Seeds are shared out over all cores.
"""

import argparse
import os
import time
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


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="only this one, with its faults")
    args = parser.parse_args()
    if args.seed is not None:
        outcome = play(args.seed)
        print(outcome)
        return bool(outcome.problems)
    began, steps, faults, failed = time.monotonic(), 0, 0, []
    for outcome in play_all(range(args.first, args.first + args.seeds)):
        steps, faults = steps + outcome.steps, faults + outcome.faults
        if outcome.problems:
            failed.append(outcome.seed)
            print(outcome, flush=True)
    print(
        f"{args.seeds} seeds, {steps} steps, {faults} faults, {len(failed)} violations"
        f" in {time.monotonic() - began:.0f} s on {os.cpu_count()} cores"
    )
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())
