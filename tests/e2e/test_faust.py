"""The stages as Faust's users start them: `faust -A streams.order_stage worker`, beside the members that run already."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .stack import FOREIGN, GOOD_WEATHER, Stack

ROOT = Path(__file__).parent.parent.parent
STAGES = ("order-stage", "payment-stage")
JOIN_WITHIN_S = 60.0


@contextmanager
def by_faust(stack: Stack, stage: str) -> Iterator["subprocess.Popen[bytes]"]:
    kept = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    module = f"streams.{stage.replace('-', '_')}"
    process = subprocess.Popen(
        [sys.executable, "-m", "faust", "-A", module, "worker"],
        cwd=ROOT,
        env={**kept, **stack.env(), "THRONES_STATE_DIR": str(stack.state_dir)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def joined(stack: Stack) -> set[str]:
    """Groups whose partitions are all read, by two members."""
    said = stack.thrones("doctor").stdout.splitlines()
    return {
        stage
        for stage in STAGES
        if any(f"group {stage}: stable, 6 of 6" in line and "2 member" in line for line in said)
    }


@pytest.mark.timeout(240)
def test_stages_started_by_fausts_own_command_share_the_work_and_leave_in_order(stack: Stack) -> None:
    """They join the groups, orders go through, and on SIGTERM each drains and exits 0; nothing is lost or charged twice."""
    stack.set_weather(GOOD_WEATHER)
    product = stack.new_product(1_000)
    with by_faust(stack, STAGES[0]) as order, by_faust(stack, STAGES[1]) as payment:
        until = time.monotonic() + JOIN_WITHIN_S
        while joined(stack) != set(STAGES):
            assert time.monotonic() < until, stack.thrones("doctor").stdout
            assert (order.poll(), payment.poll()) == (None, None)
        pids = {row["pid"] for stage in STAGES for row in stack.rows(stage)}
        assert {order.pid, payment.pid} < pids, stack.seen(*STAGES)
        assert len(pids) == 4, "the members that ran before are still shown"
        result = asyncio.run(stack.buy(product, mode="open", rate=40, seconds=2, follow=1.0))
        assert sum(result.ends.values()) == result.orders == 80
        for process in (order, payment):
            process.send_signal(signal.SIGTERM)
        assert [process.wait(30) for process in (order, payment)] == [0, 0]
    report = stack.audit(product)
    assert report["ok"], json.dumps(report, indent=1)
