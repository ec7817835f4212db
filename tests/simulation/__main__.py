"""Seeds in, failing ones out with their faults: `python -m tests.simulation --seeds 1000`, and `--seed 17` replays one.

Exit code 1 when a seed failed. Seeds are shared out over all cores.
"""

import argparse
import os
import time

from .seeds import play, play_all


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
