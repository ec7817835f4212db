"""Tails a topic while there are listeners: from its end, without a group, as raw keys and values."""

import asyncio
from collections.abc import Callable

from aiokafka.errors import KafkaError

from infra.kafka.client import CLOSE_TIMEOUT_S, NO_WAIT, FetchWait, make_consumer, set_fetch_wait
from infra.lifecycle import cancelled, close_within
from infra.logs import REQUEST_ID, get_logger
from infra.settings import Settings
from schemas.topics import Topic

POLL_MS = 500
GATHERED = FetchWait(min_bytes=32 * 1024, max_wait_ms=30)
BATCH_MAX = 2_000
AGAIN_AFTER_S = 1.0
LINGER_S = 10.0  # a listener that returns soon finds the tail running

log = get_logger()


class Tail:
    """`join` and `leave` count listeners. Without Kafka there is only no news: the owners also read by themselves."""

    def __init__(
        self,
        settings: Settings,
        topic: Topic,
        take: Callable[[bytes | None, bytes | None], None],
        at_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._topic = topic
        self._take = take
        self._at_end = at_end
        self._listeners = 0
        self._task: asyncio.Task[None] | None = None
        self._ending: asyncio.TimerHandle | None = None

    def join(self) -> None:
        self._listeners += 1
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"tail {self._topic.name}")

    def leave(self) -> None:
        self._listeners -= 1
        if self._listeners == 0:
            self._ending = asyncio.get_running_loop().call_later(LINGER_S, self._end)

    async def close(self) -> None:
        if self._ending is not None:
            self._ending.cancel()
        task = self._end()
        if task is not None:
            await asyncio.gather(task, return_exceptions=True)

    def _end(self) -> "asyncio.Task[None] | None":
        task, self._task, self._ending = self._task, None, None
        if task is not None:
            task.cancel()
        return task

    async def _run(self) -> None:
        REQUEST_ID.set(None)  # only in this task: it outlives the request that started it
        while not cancelled():
            try:
                await self._read()
            except (KafkaError, OSError, TimeoutError) as error:
                log.warning("no news from kafka", topic=self._topic.name, error=repr(error))
            await asyncio.sleep(AGAIN_AFTER_S)

    async def _read(self) -> None:
        consumer = make_consumer(self._settings, self._topic.name, auto_offset_reset="latest")
        try:
            await consumer.start()
            await consumer.seek_to_end()
            self._at_end()  # earlier changes are in the snapshots read after this
            while True:
                batches = await consumer.getmany(timeout_ms=POLL_MS, max_records=BATCH_MAX)
                set_fetch_wait(consumer, GATHERED if batches else NO_WAIT)
                for records in batches.values():
                    for record in records:
                        self._take(record.key, record.value)
        finally:
            await close_within(consumer.stop(), CLOSE_TIMEOUT_S)
