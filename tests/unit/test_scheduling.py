"""Stepping back, tried in a process of its own: it cannot be taken back."""

import subprocess
import sys

from infra.scheduling import COLLECT_AFTER, NICENESS

STEP_BACK = "import os; from infra.scheduling import lower_priority; before = os.nice(0); lower_priority(); print(os.nice(0) - before)"
COLLECT = (
    "import gc; from infra.scheduling import tune_gc; tune_gc(); print(gc.get_freeze_count() > 0, *gc.get_threshold())"
)


def _printed(code: str) -> str:
    done = subprocess.run(
        (sys.executable, "-c", code), capture_output=True, text=True, timeout=30, check=True, start_new_session=True
    )
    return done.stdout.strip()


def test_a_process_that_steps_back_has_a_lower_priority() -> None:
    assert int(_printed(STEP_BACK)) in range(1, NICENESS + 1)  # less where the tests themselves run at a low one


def test_what_lives_as_long_as_the_process_is_not_collected() -> None:
    assert _printed(COLLECT) == " ".join(map(str, (True, *COLLECT_AFTER)))
