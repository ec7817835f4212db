"""What can never be processed: its original bytes to the dead-letter topic, with where it came from and why.

A stage that dead-letters too much is itself the fault, so beyond a limit it stops with nothing acknowledged.
"""

import time
from collections import deque
from collections.abc import Callable

from infra.kafka.publisher import Publisher
from infra.logs import get_logger
from infra.metrics import definitions
from schemas.topics import DEAD_LETTERS

LIMIT = 2_000  # letters within WINDOW_S
WINDOW_S = 60.0
MAX_REASON_BYTES = 500
# A broker takes 1 MiB, headers included, but a record that came compressed may unpack to more; what is cut off is still in
# the source topic.
MAX_VALUE_BYTES = 900_000
MAX_KEY_BYTES = 64_000

_buried = definitions.DEAD_LETTERS.make()
log = get_logger()


class DeadLetterLimitExceeded(Exception):
    """More is being dead-lettered than can be an accident of single records: a human should look first."""


class DeadLetters:
    """Raises DeadLetterLimitExceeded from `bury`; nothing may catch it but the process' end."""

    def __init__(self, publisher: Publisher, limit: int = LIMIT, clock: Callable[[], float] = time.monotonic) -> None:
        self._publisher = publisher
        self._limit = limit
        self._clock = clock
        self._recent: deque[float] = deque()
        self.buried = 0

    async def bury(
        self,
        topic: str,
        partition: int,
        offset: int,
        key: bytes | None,
        value: bytes | None,
        reason: str,
        trace_id: str | None = None,
    ) -> None:
        """Returns when the letter is acknowledged; only then may its source record be. `trace_id` is for the log line."""
        self._count()
        headers: tuple[tuple[str, bytes], ...] = (
            ("source-topic", topic.encode()),
            ("source-partition", str(partition).encode()),
            ("source-offset", str(offset).encode()),
            ("reason", reason.encode(errors="backslashreplace")[:MAX_REASON_BYTES]),
        )
        key, value = key or b"", value or b""
        if len(key) > MAX_KEY_BYTES or len(value) > MAX_VALUE_BYTES:
            headers = (*headers, ("cut-from-bytes", f"key {len(key)}, value {len(value)}".encode()))
        order = key[:36].decode(errors="replace")
        traced = {} if trace_id is None else {"trace_id": trace_id}
        log.warning(
            "dead letter",
            order_id=order,
            topic=topic,
            partition=partition,
            offset=offset,
            reason=reason[:200],
            **traced,
        )
        await self._publisher.publish(DEAD_LETTERS, key[:MAX_KEY_BYTES], value[:MAX_VALUE_BYTES], headers)
        self.buried += 1
        _buried.labels(topic).inc()

    def _count(self) -> None:
        now = self._clock()
        self._recent.append(now)
        while self._recent[0] < now - WINDOW_S:
            self._recent.popleft()
        if len(self._recent) > self._limit:
            raise DeadLetterLimitExceeded(f"{len(self._recent)} dead letters within {WINDOW_S:.0f} s")
