"""Reports the vitals of a process twice a second: the delay of its event loop, and the registered samples.

A busy component counts in plain integers and copies them into metrics here, so counting costs the hot path almost nothing.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from infra.lifecycle import cancelled
from infra.metrics.definitions import LOOP_DELAY

TICK_S = 0.5
_loop_delay = LOOP_DELAY.make()
_samples: list[Callable[[], None]] = []


@contextmanager
def sampled(report: Callable[[], None]) -> Iterator[None]:
    """Call `report` at every tick, and once more at the end."""
    _samples.append(report)
    try:
        yield
    finally:
        _samples.remove(report)
        report()


async def report_vitals() -> None:
    """Run it as a background task; it never returns."""
    loop = asyncio.get_running_loop()
    while not cancelled():
        due = loop.time() + TICK_S
        await asyncio.sleep(TICK_S)
        _loop_delay.observe(max(0.0, loop.time() - due))
        for report in _samples:
            report()
