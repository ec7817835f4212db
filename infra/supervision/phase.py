"""How `thrones up` and the supervisor communicate: arguments in one direction, the start-up phase in the other."""

import json
from pathlib import Path
from typing import NamedTuple

SERVERS_ONLY = "--servers-only"
TIED = "--tied"  # end when the process that launched it ends


class Phase(NamedTuple):
    name: str
    """What it is doing, as text for people; code tests only for `running` and `failed`."""
    detail: str = ""


def write_phase(state_dir: Path, phase: Phase) -> None:
    path = state_dir / "run" / "phase"
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps(phase))
    draft.replace(path)


def read_phase(state_dir: Path) -> Phase:
    try:
        return Phase(*json.loads((state_dir / "run" / "phase").read_text()))
    except (OSError, ValueError, TypeError):
        return Phase("starting")
