"""A test that misses a process says why: what the registry knows of each, how busy the machine is, what was logged last."""

import asyncio
import json
import os
import random
import subprocess
from pathlib import Path

import pytest

from infra.supervision import registry
from infra.supervision.phase import Phase, write_phase
from tests.chaos import ground
from tests.chaos.ground import Ground


def test_what_is_said_of_a_missed_process_names_the_registrys_rows_and_the_last_lines(tmp_path: Path) -> None:
    gone = subprocess.Popen(["sleep", "60"])
    registry.register("relay", state_dir=tmp_path)
    registry.register("postgres", pid=gone.pid, state_dir=tmp_path)
    other = registry.register("redis", state_dir=tmp_path)
    other.write_text(json.dumps(json.loads(other.read_text()) | {"started": "another-boot:1"}))
    gone.kill()
    gone.wait()
    write_phase(tmp_path, Phase("running"))
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "postgres-1.log").write_text("no space left on device\n")
    said = Ground(tmp_path).seen("postgres")
    assert f"relay-1.json: pid {os.getpid()} runs" in said
    assert f"postgres-1.json: pid {gone.pid} has ended" in said
    assert "redis-1.json" in said
    assert "not another-boot:1" in said
    assert "no space left on device" in said
    assert "the stack: running" in said


async def test_a_process_that_is_just_being_replaced_is_waited_for(tmp_path: Path) -> None:
    picking = asyncio.create_task(Ground(tmp_path).pick("relay", random.Random(1)))
    await asyncio.sleep(3 * ground.POLL_INTERVAL_S)
    assert not picking.done()
    registry.register("relay", state_dir=tmp_path)
    assert (await picking)["pid"] == os.getpid()


async def test_one_that_never_comes_is_missed_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ground, "REGISTER_TIMEOUT_S", 0.1)
    registry.register("relay", state_dir=tmp_path)
    with pytest.raises(AssertionError, match=r"(?s)no postgres runs: load average.*relay-1\.json: pid \d+ runs"):
        await Ground(tmp_path).pick("postgres", random.Random(1))
