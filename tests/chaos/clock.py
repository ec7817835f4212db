"""A wall clock of the stack's own, set while it runs: Debian's libfaketime under our processes, Redis and Postgres.

The machine's clock is left alone, and so are monotonic clocks, as by whoever sets a clock in life. Kafka keeps the machine's
clock: a broker on another machine. What asks from outside (load, audit, `thrones`) keeps it too.
"""

import json
import sys
from pathlib import Path

from tests.debian import unpacked

PACKAGE, LIBRARY = "libfaketime", "libfaketime.so.1"
SEEN_AFTER_S = 1  # a process looks at the file once a second
# The command itself runs by the machine's clock, what it starts by the stack's.
AROUND = "import json, os, sys; os.environ.update(json.loads(sys.argv.pop(1))); from thrones import app; app()"


class StackClock:
    """As the machine's, plus `ahead_s`."""

    def __init__(self, folder: Path, ahead_s: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "clock"
        self._library = unpacked(f"usr/lib/*/faketime/{LIBRARY}", PACKAGE, folder)
        self.set(ahead_s)

    def set(self, ahead_s: float) -> None:
        """In force within a second or so."""
        self.ahead_s = ahead_s
        draft = self._file.with_suffix(".draft")
        draft.write_text(f"{ahead_s:+.3f}\n")
        draft.replace(self._file)

    def around(self, command: str) -> tuple[str, ...]:
        """A command of `thrones` whose processes have this clock."""
        env = {
            "LD_PRELOAD": str(self._library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_RESET": "1",
            "FAKETIME_CACHE_DURATION": str(SEEN_AFTER_S),
            "FAKETIME_SKIP_CMDS": "java",
        }
        return sys.executable, "-c", AROUND, json.dumps(env), command
