"""The projector's commits: one that the broker did not take is tried again, also if no more records come."""

import asyncio
from typing import Any

from aiokafka.errors import CommitFailedError, KafkaConnectionError

from consumers import projector


class Broker:
    """A consumer that fetches one batch and then nothing; its first commit ends with `error`."""

    def __init__(self, error: Exception) -> None:
        self._error: Exception | None = error
        self._batches: list[dict[Any, list[Any]]] = [{("order-status", 0): []}]
        self.commits = 0
        self.committed = asyncio.Event()
        self._fetcher: Any = None

    async def start(self) -> None:
        self._fetcher = type("Fetcher", (), {})()

    async def getmany(self, **_: Any) -> dict[Any, list[Any]]:
        await asyncio.sleep(0.01)
        return self._batches.pop() if self._batches else {}

    async def commit(self) -> None:
        self.commits += 1
        error, self._error = self._error, None
        if error is not None:
            raise error
        self.committed.set()


async def test_a_commit_that_the_broker_did_not_take_is_tried_again_though_no_more_records_come() -> None:
    """Else the group seems to lag for ever, and the relay holds nothing that waits for it for stranded."""
    broker: Any = Broker(KafkaConnectionError("away"))
    projecting = asyncio.create_task(projector._project(broker, None))  # type: ignore[arg-type]  # nothing is projected
    try:
        async with asyncio.timeout(10):
            await broker.committed.wait()
        assert broker.commits == 2
    finally:
        projecting.cancel()


async def test_a_commit_of_partitions_that_have_moved_is_not_repeated() -> None:
    """Their new owner reads the records again."""
    broker: Any = Broker(CommitFailedError("moved"))
    assert await projector._commit(broker)
