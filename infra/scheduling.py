"""How a process shares a busy machine: its CPU priority, and how often it collects garbage."""

import gc
import os
from contextlib import suppress
from pathlib import Path

# Buyers wait for the gateway, and behind it for Redis and Kafka. On a full machine the other processes can wait.
LOW_PRIORITY_ROLES = frozenset({"order-stage", "payment-stage", "projector", "relay", "reconciler", "payment-gateway"})
NICENESS = (
    5  # a third of the CPU weight of a process at the default priority (sched(7)); with a tenth, at 10, they starved
)

# Thousands of orders in flight are thousands of live objects. With Python's defaults (700, 10, 10) a payment stage spent
# 15% of its CPU searching them for cycles, and there are hardly any.
COLLECT_AFTER = (20_000, 20, 50)


def lower_priority(steps: int = NICENESS) -> None:
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
