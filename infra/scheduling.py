"""How a process shares a busy machine: who steps back, and how often garbage is looked for."""

import gc
import os
from contextlib import suppress
from pathlib import Path

# Buyers wait for the gateway, and behind it Redis and Kafka; nobody waits for the rest while the machine is full.
LOW_PRIORITY_ROLES = frozenset({"order-stage", "payment-stage", "projector", "relay", "reconciler", "payment-gateway"})
NICENESS = 10  # a tenth of the weight of a process that does not step back (sched(7))

# Thousands of orders in flight are thousands of live objects: with Python's defaults (700, 10, 10) a payment stage spent
# 15% of its CPU looking through them for cycles that are hardly ever there.
COLLECT_AFTER = (20_000, 20, 50)


def lower_priority() -> None:
    """Lower priority, for good. Where the kernel groups by session (autogroup), a session's leader lowers its group too."""
    os.nice(NICENESS)
    if os.getsid(0) == os.getpid():
        with suppress(OSError):  # no such grouping here
            Path("/proc/self/autogroup").write_text(str(NICENESS))


def tune_gc() -> None:
    """Once everything is imported: what lives as long as the process is never looked at again, the rest less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
