"""What docs, docstrings and comments name exists: files, folders, modules and what is in them."""

import ast
import re
import subprocess
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from posixpath import dirname, normpath

import pytest

ROOT = Path(__file__).parent.parent.parent
FILES = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
FOLDERS = {str(folder) for file in FILES for folder in Path(file).parents}
ENDINGS = r"(?:py|lua|sql|md|ya?ml|jsonl?|toml|lock|html|js|css|svg|sh|template)\b"
ROOMS = r"(?:schemas|infra|sale|gateway|streams|consumers|bench|tests)"
FILE = re.compile(rf"(?<![\w./{{~<-])((?:[\w.-]+/)+[\w.-]+\.{ENDINGS})|`([\w-]+\.{ENDINGS})`")
FOLDER = re.compile(rf"(?<![\w./-])((?:{ROOMS}|docs)/[\w/-]*)(?![\w.{{<*-])")
MODULE = re.compile(rf"(?<![\w./-])({ROOMS}(?:\.(?!{ENDINGS}|parquet\b)[A-Za-z_]\w*)+)(?![\w/(-])")
WITHOUT_NAMES = (".png", ".svg", ".lock", ".jsonl", ".schema.json", "iframe-worker.js", "tests/unit/test_references.py")
WRITTEN_LATER = {  # by `make docs`, the local stack, load tests and a foreign client's generator
    "build/site/index.html",
    ".thrones/prometheus/targets.json",
    "payments/ledger.jsonl",
    "tests/clients/schema.js",
    "stack.json",
    "result.json",
    "locust.json",
    "locust.html",
    "clients.jsonl",
}
EVENTS = {"sale.controlled"}  # looks like a module


def prose(file: str) -> str:
    """Docstrings and comments of Python, all of any other file."""
    path = ROOT / file
    if path.suffix != ".py":
        return path.read_text()
    with path.open("rb") as lines:
        comments = [token.string for token in tokenize.tokenize(lines.readline) if token.type == tokenize.COMMENT]
    described = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, described)]
    return "\n".join([*comments, *(ast.get_docstring(node, clean=False) or "" for node in nodes)])


def missing(text: str, file: str = "README.md") -> Iterator[str]:
    for name, lone_name in FILE.findall(text):
        if not is_file(name or lone_name, dirname(file)):
            yield name or lone_name
    for name in FOLDER.findall(text):
        if name.rstrip("/") not in FOLDERS and name not in FILES and f"{name}.py" not in FILES:
            yield name
    for name in MODULE.findall(text):
        if name not in EVENTS and not is_module(name):
            yield name


def is_file(name: str, folder: str) -> bool:
    """From the root, from the folder of the file that names it, or the end of a path."""
    paths = {normpath(name), normpath(f"{folder}/{name}")}
    return bool(paths & (WRITTEN_LATER | set(FILES))) or any(path.endswith(f"/{name}") for path in FILES)


@cache
def is_module(name: str) -> bool:
    """A package, a module, or a name that a module has."""
    path, _, last = name.replace(".", "/").rpartition("/")
    if f"{path}/{last}" in FOLDERS or f"{path}/{last}.py" in FILES:
        return True
    source = next((file for file in (f"{path}.py", f"{path}/__init__.py") if file in FILES), None)
    if source is None:
        return "." in name and is_module(name.rpartition(".")[0])
    return re.search(rf"\b{last}\b", (ROOT / source).read_text()) is not None


@pytest.mark.parametrize("file", [file for file in FILES if not file.endswith(WITHOUT_NAMES)])
def test_what_a_file_names_exists(file: str) -> None:
    assert list(missing(prose(file), file)) == []


@pytest.mark.parametrize(
    "name",
    [
        "gateway/orders.py",
        "`nonsense.lua`",
        "infra/k8s/",
        "infra.relay",
        "sale.books.keys.nonsense",
        "bench.nonsense.run",
    ],
)
def test_what_does_not_exist_is_found(name: str) -> None:
    assert list(missing(f"see {name}, and gateway/app.py, `keys.py`, infra/local, sale.books.keys.stock.")) == [
        name.strip("`")
    ]
