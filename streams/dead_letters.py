"""Sends records that can never be processed to the dead-letter topic: the original bytes, their source and the reason.

A stage that sends too many dead letters is itself at fault. Above a limit it stops, without acknowledging these records.
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
# A broker takes 1 MiB including headers, but a compressed record may unpack to more. The source topic has the full record.
MAX_VALUE_BYTES = 900_000
MAX_KEY_BYTES = 64_000

_sent = definitions.DEAD_LETTERS.make()
log = get_logger()


class DeadLetterLimitExceeded(Exception):
    """There are too many dead letters to be accidents of single records: an operator has to look first."""


class DeadLetters:
    """`send` raises DeadLetterLimitExceeded, which must end the process: no code may catch it."""

    def __init__(self, publisher: Publisher, limit: int = LIMIT, clock: Callable[[], float] = time.monotonic) -> None:
        self._publisher = publisher
        self._limit = limit
        self._clock = clock
        self._recent: deque[float] = deque()
        self.sent = 0

    async def send(
        self,
        topic: str,
        partition: int,
        offset: int,
        key: bytes | None,
        value: bytes | None,
        reason: str,
        trace_id: str | None = None,
    ) -> None:
        """Returns when the letter is acknowledged. Only then acknowledge its source record. `trace_id`: for the log line."""
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
        self.sent += 1
        _sent.labels(topic).inc()

    def _count(self) -> None:
        now = self._clock()
        self._recent.append(now)
        while self._recent[0] < now - WINDOW_S:
            self._recent.popleft()
        if len(self._recent) > self._limit:
            raise DeadLetterLimitExceeded(f"{len(self._recent)} dead letters within {WINDOW_S:.0f} s")
