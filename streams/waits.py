"""Tells the gateways how long an order would wait at this member, four times a second."""

import asyncio
import itertools
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress

from infra.metrics.definitions import CONSUMER_WAIT
from infra.redis.client import Redis, RedisError
from sale.books.pipeline import REPORT_INTERVAL_S, MemberReport, Pipeline

from .backlog import Backlog, QueueCount

_wait = CONSUMER_WAIT.make()


class WaitReports:
    """Best effort: a report that Redis does not take is lost, and no record ever waits for one.

    `queues` are the queues of this member now, always as many.
    """

    def __init__(
        self, redis: Redis, stage: str, member: str, partitions: int, queues: Callable[[], Sequence[QueueCount]]
    ) -> None:
        self._pipeline = Pipeline(redis)
        self._stage, self._partitions, self._queues = stage, partitions, queues
        # Two processes may have one number: a stage that was started by hand, or a killed one and its successor.
        self._member = f"{member}-{uuid.uuid4().hex[:8]}"
        self._held = 0
        self._backlogs: list[Backlog] = []

    def hold(self, partitions: int) -> None:
        """This member holds so many partitions from now on; what waits in them is another number than before."""
        self._held, self._backlogs = partitions, []

    async def run(self) -> None:
        """Until cancelled."""
        for beat in itertools.count():
            await asyncio.sleep(REPORT_INTERVAL_S)
            wait_s = self._wait_s(time.monotonic())
            _wait.set(wait_s)
            with suppress(RedisError, OSError):
                await self._pipeline.report(
                    self._stage, self._member, MemberReport(beat, self._held, self._partitions, round(1000 * wait_s))
                )

    def _wait_s(self, now_s: float) -> float:
        queues = self._queues()
        self._backlogs = self._backlogs or [Backlog() for _ in queues]
        return sum(backlog.wait_s(queue, now_s) for backlog, queue in zip(self._backlogs, queues, strict=True))
