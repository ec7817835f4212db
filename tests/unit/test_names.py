"""One word, one idea: no two public classes of the product share a name."""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("schemas", "infra", "sale", "gateway", "streams", "consumers", "bench")


def test_no_two_public_classes_share_a_name() -> None:
    modules: defaultdict[str, list[str]] = defaultdict(list)
    for path in (ROOT / "thrones.py", *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                modules[node.name].append(str(path.relative_to(ROOT)))
    assert {name: places for name, places in modules.items() if len(places) > 1} == {}
