"""Ends a process that has stopped consuming; the supervisor then starts a new one.

After a broker restart or a rebalance a consumer can stay alive and never read again (faust-streaming 175, 523, 629; aiokafka
1154). A process is stuck when its event loop does not run, or when its partitions lag and do not move while it has no record
in work and has declared no wait. A member without partitions checks the partitions that no member holds.
Waiting for Postgres, Redis, Kafka or the provider does not count as stuck.
"""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Collection

from infra.kafka.watermarks import KAFKA_ERRORS, Watermarks
from infra.lifecycle import cancelled
from infra.logs import get_logger
from infra.settings import Settings
from infra.waits import waiting_for

LOOP_STALL_S = 30.0
# Longer than a rebalance around a dead member (its session of 10 s and a heartbeat of the others). Short enough that an idle
# system is quiet within 60 s, with a new process. A member that is ended by mistake costs a restart and no record.
GROUP_STALL_S = 30.0
CHECK_INTERVAL_S = 5.0
EXIT_CODE = 70  # EX_SOFTWARE

log = get_logger()


class Watchdog:
    """`idle`: this member has no record in work. `partitions`: the ones it holds. Runs beside the consumer, for ever."""

    def __init__(
        self,
        settings: Settings,
        group: str,
        idle: Callable[[], bool],
        partitions: Callable[[], Collection[int]],
        *,
        clock: Callable[[], float] = time.monotonic,
        end_process: Callable[[int], object] = os._exit,
    ) -> None:
        self._group = group
        self._idle = idle
        self._partitions = partitions
        self._clock = clock
        self._end_process = end_process
        self._watermarks = Watermarks(settings)
        self._turned_at = clock()
        self._lag: dict[int, int] = {}
        self._moved_at = clock()
        self._over = threading.Event()

    async def run(self) -> None:
        threading.Thread(target=self._watch_loop, name="watchdog", daemon=True).start()
        try:
            while not cancelled():
                await self._check()
                for _ in range(int(CHECK_INTERVAL_S)):
                    self._turned_at = self._clock()
                    await asyncio.sleep(1.0)
        finally:
            await self._watermarks.close()
            self._over.set()

    async def _check(self) -> None:
        try:
            lag = await self._watermarks.lag(self._group)
            own = self._partitions() or await self._watermarks.unassigned(self._group)
        except KAFKA_ERRORS:  # while Kafka does not report offsets, no member can read either
            self._moved_at = self._clock()
            return
        lag = {partition: records for partition, records in lag.items() if partition in own}
        if self.is_stuck(lag):
            log.error("stuck: nothing is read of what lags here", group=self._group, lag=sum(lag.values()))
            self._end_process(EXIT_CODE)

    def is_stuck(self, lag: dict[int, int]) -> bool:
        """Whether nothing has moved for too long, without a reason. `lag`: of the partitions it should read.

        The lag of a partition that is not read grows; that of one that is read shrinks or is zero. So a smaller lag in any
        partition counts as movement.
        """
        moved = any(lag.get(partition, 0) < before for partition, before in self._lag.items())
        self._lag = lag
        if moved or not any(lag.values()) or not self._idle() or waiting_for():
            self._moved_at = self._clock()
        return self._clock() - self._moved_at > GROUP_STALL_S

    def _watch_loop(self) -> None:
        while not self._over.wait(1.0):
            if self._clock() - self._turned_at > LOOP_STALL_S:
                log.error("stuck: the event loop does not run", group=self._group)
                self._end_process(EXIT_CODE)
