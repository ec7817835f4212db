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


@pytest.mark.timeout(2 * DEADLINE_S + 180)  # the stack may have to be started first
def test_the_first_purchase_works_as_it_is_written_and_works_again(stack: Stack) -> None:
    """Created, bought twice with one key for one unit, ended, watched, audited; a second run finds what the first has done."""
    first, again = run_blocks(stack), run_blocks(stack)
    assert "100 of 100 on sale" in first
    assert "Idempotent-Replayed" not in first
    assert "100 of 100 on sale" not in again
    assert "Idempotent-Replayed: true" in again
    for output in (first, again):
        assert output.count("HTTP/1.1 202") == 1
        assert re.search(r'"status":"(confirmed|payment_failed)"', output), output
        assert re.search(r'data: {"productId":42,"stock":(99|100)}', output), output
        assert re.search(r"log +accepted 1 = ", output), output  # one order, though it was sent four times
        assert "The books balance." in output


def run_blocks(stack: Stack) -> str:
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
    return done.stdout
