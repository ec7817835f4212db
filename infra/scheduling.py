"""How a process shares a busy machine: its CPU priority, and how often it collects garbage."""

import gc
import os
from contextlib import suppress
from pathlib import Path

# Buyers wait for the gateway, and behind it for Redis and Kafka. On a full machine the others run with less weight, but with
# enough to end about half of what is accepted meanwhile: each step is a tenth less CPU (sched(7)). At 10 they starved.
NICENESS = {
    "order-stage": 3,
    "payment-stage": 3,
    "payment-gateway": 3,
    "projector": 5,
    "relay": 5,
    "reconciler": 10,
}

# Thousands of orders in flight are thousands of live objects. With Python's defaults (700, 10, 10) a payment stage spent
# 15% of its CPU searching them for cycles, and there are hardly any.
COLLECT_AFTER = (20_000, 20, 50)


def lower_priority(steps: int) -> None:
    """Lower the priority for good. Where the kernel groups by session (autogroup), a session leader lowers its group too."""
    os.nice(steps)
    if os.getsid(0) == os.getpid():
        with suppress(OSError):  # this kernel has no autogroup
            Path("/proc/self/autogroup").write_text(str(steps))


def tune_gc() -> None:
    """Call it after all imports: the collector ignores what exists now, and looks at the rest less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
