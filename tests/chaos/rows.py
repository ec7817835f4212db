"""What a row of the fault table is: a fault, the load it meets, and the figures it is held to."""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from tests.e2e.stack import BAD_WEATHER, GOOD_WEATHER

from .figures import Figure
from .trial import Trial

Faults = Callable[[Trial], Awaitable[None]]
Through = Callable[[Trial], AbstractAsyncContextManager[str]]


@dataclass(frozen=True)
class Row:
    """`load` is a share of L; 0 where the plan says itself how much. `short_s`: seconds in `make test`, 0 where not there."""

    name: str
    fault: str
    holds: str
    faults: Faults | None = None  # the load itself is the fault
    figures: tuple[Figure, ...] = ()
    seconds: float = 30.0
    short_s: float = 0.0
    after_s: float = 6.0  # load goes on, to see it recover
    rest_s: float = 0.0  # after quiet, for kept connections to be closed, before processes are measured
    load: float = 1.0
    plan: Mapping[str, Any] = field(default_factory=dict)
    stock: int = 200_000
    options: tuple[str, ...] = ()
    weather: Mapping[str, Any] = field(default_factory=lambda: BAD_WEATHER)
    through: Through | None = None  # another gateway for the load; its URL
    brokers: int = 1
    own_clock: bool = False  # the stack is started again under a clock of its own, which the faults set
    wrecks: bool = False  # the stack's history is gone afterwards: it is made anew
    not_reached: str = ""  # of the table's row, and why


STEADY = {"mode": "open", "double_clicks": 0.1, "timeout_s": 8.0, "connections": 4_000}
CALM = GOOD_WEATHER
