"""Paths: the repository, and the state directory of the current stack."""

import os
from pathlib import Path

import infra

REPOSITORY = Path(infra.__file__).resolve().parent.parent


def default_state_dir() -> Path:
    """`THRONES_STATE_DIR`, else `.thrones` in the repository; it does not depend on the working directory."""
    return Path(os.environ.get("THRONES_STATE_DIR") or REPOSITORY / ".thrones").absolute()
