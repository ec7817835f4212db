"""Digits of other scripts are digits to Python: text from outside is never read as a number because of that."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
ROOMS = ("schemas", "infra", "sale", "gateway", "streams", "consumers", "bench")
FILES = [ROOT / "thrones.py", *(file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py")))]
DIGITS = {"isdigit", "isdecimal", "isnumeric"}


def faults(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="re")), args=[ast.Constant(value=str(pattern)), *_]):
                if r"\d" in pattern and "re.ASCII" not in ast.unparse(node):
                    yield f"{node.lineno}: {pattern!r} matches digits of every script"
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                text = ast.unparse(node)
                if any(f".{name}()" in text for name in DIGITS) and ".isascii()" not in text:
                    yield f"{node.lineno}: {node.name} takes digits of every script"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_numbers_are_read_from_ascii_digits_only(file: Path) -> None:
    assert list(faults(file.read_text())) == []


def test_a_pattern_of_every_script_is_found() -> None:
    assert list(faults('import re\nre.fullmatch(r"\\d+", "٣")\ndef f(t): return t.isdigit()'))
