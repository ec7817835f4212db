"""The wall clock decides nothing: every place that reads it is known, with the reason why a clock that is set does no harm there."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("gateway", "streams", "consumers", "sale", "infra", "schemas", "thrones.py")
WALL = {
    "now_ms",
    "time.time",
    "time.time_ns",
    "datetime.now",
    "datetime.utcnow",
    "date.today",
    "time.localtime",
    "time.gmtime",
}

SHOWN = "shown to people, or a metric that is never below zero"
DATED = "dates a record for those who read it; nothing is decided by it"
ALLOWED = {
    "consumers/audit/readers.py": "of a log that keeps nothing: what is older than now is not asked for",
    "consumers/autoscale.py": SHOWN,
    "consumers/projector.py": SHOWN,
    "consumers/reconciler.py": DATED,
    "consumers/relay/pushes.py": DATED,
    "consumers/relay/samples.py": DATED,
    "consumers/replay/when.py": "`--from yesterday` means the reader's yesterday",
    "gateway/accounts/identity.py": "tokens carry times of day",
    "gateway/watching/products.py": "`serverTime`",
    "schemas/clock.py": "beside the monotonic clock, and the longer of both counts",
    "sale/books/rebuild/rebuild.py": DATED,
    "infra/local/payment_gateway.py": DATED,
    "sale/settlement.py": DATED,
    "streams/payment_stage.py": DATED,
    "streams/placing.py": DATED,
    "sale/payments/provider.py": "`Retry-After` as a date, held between 0 and 60 s",
    "sale/accounts/tokens.py": "tokens carry times of day",
    "infra/kafka/watermarks.py": SHOWN,
}


def test_every_use_of_the_wall_clock_is_known_with_its_reason() -> None:
    files = [
        path for room in ROOMS for path in ([ROOT / room] if room.endswith(".py") else (ROOT / room).rglob("*.py"))
    ]
    found = {str(path.relative_to(ROOT)) for path in files if _reads_the_wall_clock(path)}
    assert found == set(ALLOWED)


def _reads_the_wall_clock(path: Path) -> bool:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
    called = {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}
    return not WALL.isdisjoint(names | called)
