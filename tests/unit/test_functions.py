"""A function of the product is short enough to see at once."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("schemas", "infra", "sale", "gateway", "streams", "consumers", "bench")
LINES_MAX = 40


def test_no_function_is_longer_than_a_screen() -> None:
    too_long = {
        f"{path.relative_to(ROOT)} {node.name}"
        for path in (ROOT / "thrones.py", *(path for room in ROOMS for path in (ROOT / room).rglob("*.py")))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None
        if node.end_lineno - node.lineno >= LINES_MAX
    }
    assert too_long == set()
