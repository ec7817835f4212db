"""The README's first purchase in, run as it stands against a whole stack; what it promises to show must be there."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from .stack import FOREIGN, Stack

ROOT = Path(__file__).parent.parent.parent
TESTED = re.compile(r"<!-- tested[^\n]*-->\n```sh\n(.*?)```", re.DOTALL)
DEADLINE_S = 110


@pytest.mark.timeout(DEADLINE_S + 180)  # the stack may have to be started first
def test_the_first_purchase_works_as_it_is_written(stack: Stack) -> None:
    """Created, bought twice with one key for one unit, ended, watched, audited."""
    blocks = TESTED.findall((ROOT / "README.md").read_text())
    assert len(blocks) == 3
    shell = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    done = subprocess.run(
        ["bash", "-c", "set -eu -o pipefail\n" + "".join(blocks)],
        cwd=ROOT,
        env={**shell, "THRONES_STATE_DIR": str(stack.state_dir), "PORT": stack.env()["PORT"]},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "100 of 100 on sale" in done.stdout
    assert done.stdout.count("HTTP/1.1 202") == 1
    assert re.search(r'"status":"(confirmed|payment_failed)"', done.stdout), done.stdout
    assert re.search(r'data: {"productId":42,"stock":(99|100)}', done.stdout), done.stdout
    assert re.search(r"log +accepted 1 = ", done.stdout), done.stdout  # one order, though it was sent twice
    assert "The books balance." in done.stdout
