"""Ending: a loop whose cancellation was dropped on the way still ends."""

import asyncio

from infra.lifecycle import background, cancelled
from infra.waits import retry_until_ok


async def deaf(began: asyncio.Event) -> None:
    """As a library that takes the cancellation of its caller for that of a task of its own."""
    began.set()
    try:
        await asyncio.sleep(3_600)
    except asyncio.CancelledError:
        return


async def test_a_loop_ends_although_its_cancellation_was_dropped() -> None:
    began = asyncio.Event()

    async def loop() -> None:
        while not cancelled():
            await deaf(began)

    async with asyncio.timeout(5):
        async with background(loop()):
            await began.wait()


async def test_trying_until_it_works_ends_although_the_cancellation_became_an_error() -> None:
    began = asyncio.Event()

    async def attempt() -> None:
        await deaf(began)
        raise OSError("connection closed")

    async with asyncio.timeout(5):
        task = asyncio.create_task(retry_until_ok("a server", (OSError,), attempt))
        await began.wait()
        task.cancel()
        ended = (await asyncio.gather(task, return_exceptions=True))[0]
    assert isinstance(ended, asyncio.CancelledError)
