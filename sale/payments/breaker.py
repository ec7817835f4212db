"""A circuit breaker: while the provider is dead, callers wait instead of calling it.

A wait never fails: `acquire` returns when the call may be made. Only a provider that answers almost nothing counts as dead.
One that fails most calls is still called, because each answer settles an order.
"""

import asyncio
import enum
from collections import OrderedDict, deque

from infra.backoff import jittered
from infra.metrics.definitions import BREAKER_OPENED, BREAKER_STATE

WINDOW_CALLS = 100
MIN_CALLS = 50
FAILURE_RATE = 0.9  # a provider that fails 70% of calls reaches it in fewer than 1 of 100,000 windows of 100
SILENCE_S = 1.0  # and no answer for this long: calls that began together also time out together
OPEN_MIN_S = 0.5
OPEN_MAX_S = 3.0  # short, because the backlog drains only after the first successful probe
PROBES = 5

_state, _opened = BREAKER_STATE.make(), BREAKER_OPENED.make()


class BreakerState(enum.IntEnum):
    """The numbers are the values of the metric."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class CircuitBreaker:
    """Closed; open at a failure rate over the last calls; half-open with a few probes; closed again after one success.

    A permit carries the period in which it was given. Failures of calls from an earlier period do not count.
    """

    def __init__(self) -> None:
        self.state = BreakerState.CLOSED
        self.opened = 0
        self._period = 0
        self._recent: deque[bool] = deque(maxlen=WINDOW_CALLS)
        self._failures = 0
        self._answered_at = float("-inf")
        self._open_s = OPEN_MIN_S
        self._probes_left = 0
        self._probes_out = 0
        self._waiting: OrderedDict[asyncio.Future[int], None] = OrderedDict()  # first come, first served

    @property
    def waiting(self) -> int:
        """The number of waiting callers."""
        return len(self._waiting)

    @property
    def declared_wait(self) -> str | None:
        """Why callers may wait although the process is healthy; None while closed."""
        return None if self.state is BreakerState.CLOSED else "payment provider is not answering"

    async def acquire(self) -> int:
        """Wait until a call may be made. Return the permit with `record`, however the call ends."""
        if self.state is BreakerState.CLOSED:
            return self._period
        if self.state is BreakerState.HALF_OPEN and self._probes_left:
            return self._give_probe()
        caller: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting[caller] = None
        try:
            return await caller
        except asyncio.CancelledError:
            self._waiting.pop(caller, None)
            if caller.done() and not caller.cancelled():  # permitted and cancelled in the same loop iteration
                self.record(caller.result(), None)
            raise

    def record(self, permit: int, answered: bool | None) -> None:
        """`answered`: True for any definite answer of the provider, False for a failure, None if unknown."""
        if answered:
            self._answered_at = asyncio.get_running_loop().time()
        if answered and self.state is not BreakerState.CLOSED:
            self._close()
        elif permit != self._period:
            return
        elif self.state is BreakerState.HALF_OPEN:
            self._probe_failed(answered)
        elif self.state is BreakerState.CLOSED and answered is not None:
            self._count(answered)

    def _count(self, answered: bool) -> None:
        if len(self._recent) == WINDOW_CALLS:
            self._failures -= not self._recent[0]
        self._recent.append(answered)
        self._failures += not answered
        if answered or len(self._recent) < MIN_CALLS or self._failures < FAILURE_RATE * len(self._recent):
            return
        if asyncio.get_running_loop().time() - self._answered_at >= SILENCE_S:
            self._open()

    def _probe_failed(self, answered: bool | None) -> None:
        self._probes_out -= 1
        if answered is None:
            self._probes_left += 1
            self._wake_probes()
        elif not self._probes_out and not self._probes_left:
            self._open_s = min(self._open_s * 2, OPEN_MAX_S)
            self._open()

    def _open(self) -> None:
        self._begin(BreakerState.OPEN)
        self.opened += 1
        _opened.inc()
        period, wait_s = self._period, jittered(self._open_s, least=0.75)
        asyncio.get_running_loop().call_later(wait_s, self._half_open, period)

    def _half_open(self, period: int) -> None:
        if period != self._period:  # a late answer has closed it
            return
        self._begin(BreakerState.HALF_OPEN)
        self._probes_left, self._probes_out = PROBES, 0
        self._wake_probes()

    def _close(self) -> None:
        self._begin(BreakerState.CLOSED)
        self._open_s = OPEN_MIN_S
        while caller := self._next_waiting():
            caller.set_result(self._period)

    def _begin(self, state: BreakerState) -> None:
        self.state = state
        _state.set(state)
        self._period += 1
        self._recent.clear()
        self._failures = 0

    def _wake_probes(self) -> None:
        while self._probes_left and (caller := self._next_waiting()):
            caller.set_result(self._give_probe())

    def _give_probe(self) -> int:
        self._probes_left -= 1
        self._probes_out += 1
        return self._period

    def _next_waiting(self) -> "asyncio.Future[int] | None":
        """Skips callers that were cancelled in this loop iteration and are still in the queue."""
        while self._waiting:
            caller, _ = self._waiting.popitem(last=False)
            if not caller.done():
                return caller
        return None
