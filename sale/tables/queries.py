"""Loads the statements of queries.sql by name: SQL stays SQL and is never put together from strings."""

import re
from pathlib import Path
from types import SimpleNamespace


def _load(path: Path) -> SimpleNamespace:
    parts = re.split(r"^-- name: (\w+)$", path.read_text(), flags=re.MULTILINE)[1:]
    return SimpleNamespace(**dict(zip(parts[::2], (body.strip() for body in parts[1::2]), strict=True)))


SQL = _load(Path(__file__).with_name("queries.sql"))
