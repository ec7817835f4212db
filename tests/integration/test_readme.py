"""The README's first purchase in, run as it stands against a whole stack; what it promises to show must be there.

A stack of this test's own, or the one of THRONES_STATE_DIR if it runs.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import registry
from infra.local.ports import load_config

ROOT = Path(__file__).parent.parent.parent
TESTED = re.compile(r"<!-- tested[^\n]*-->\n```sh\n(.*?)```", re.DOTALL)
UP_DEADLINE_S = 100
PURCHASE_DEADLINE_S = 110
FOREIGN = ("KAFKA_BOOTSTRAP_SERVERS", "REDIS_URL", "DB_HOST", "DB_PORT", "POSTGRES_DB", "PAYMENT_GATEWAY_URL", "PORT")


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """What a reader's shell would have: the stack's state directory and its port."""
    clean = {key: value for key, value in os.environ.items() if key not in FOREIGN}
    given = os.environ.get("THRONES_STATE_DIR")
    if given and registry.live_rows(Path(given)):
        yield {**clean, "PORT": _port(Path(given))}
        return
    own = {**clean, "THRONES_STATE_DIR": str(tmp_path / "state")}
    try:
        _thrones("up", {**own, "PORT": "0"})
        yield {**own, "PORT": _port(tmp_path / "state")}
    finally:
        _thrones("reset", own)


def _thrones(command: str, env: dict[str, str]) -> None:
    arguments = [sys.executable, "-m", "thrones", command]
    done = subprocess.run(arguments, cwd=ROOT, env=env, capture_output=True, text=True, timeout=UP_DEADLINE_S)
    assert done.returncode == 0, done.stdout + done.stderr


def _port(state_dir: Path) -> str:
    config = load_config(state_dir)
    assert config is not None
    return str(config.port)


@pytest.mark.timeout(UP_DEADLINE_S + PURCHASE_DEADLINE_S)
def test_the_first_purchase_works_as_it_is_written(environment: dict[str, str]) -> None:
    """Created, bought twice with one key for one unit, ended, watched, audited."""
    blocks = TESTED.findall((ROOT / "README.md").read_text())
    assert len(blocks) == 3
    script = "set -eu -o pipefail\n" + "".join(blocks)
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PURCHASE_DEADLINE_S
    )
    shown = done.stdout + done.stderr
    assert done.returncode == 0, shown
    assert "100 of 100 on sale" in shown
    assert "HTTP/1.1 202" in shown
    assert re.search(r'"status":"(confirmed|payment_failed)"', shown), shown
    assert re.search(r'data: {"productId":42,"stock":(99|100)}', shown), shown
    assert re.search(r"log +accepted 1 = ", shown), shown  # one order, though it was sent twice
    assert "The books balance." in shown
