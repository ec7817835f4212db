"""The inbox hands over what there is, in order, at once, and waits only when there is nothing."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from streams.inbox import Inbox


@given(st.lists(st.integers(0, 5)), st.integers(1, 4))
def test_everything_comes_out_once_in_order_in_batches_up_to_the_limit(sizes: list[int], limit: int) -> None:
    """Nothing is lost or repeated, whatever arrives between two takes."""

    async def run() -> list[int]:
        inbox: Inbox[int] = Inbox()
        out: list[int] = []
        number = 0
        for size in sizes:
            for _ in range(size):
                inbox.put(number)
                number += 1
            if len(inbox):
                batch = await inbox.take(limit)
                assert 1 <= len(batch) <= limit
                out += batch
        while len(inbox):
            out += await inbox.take(limit)
        assert out == list(range(number))
        return out

    asyncio.run(run())


async def test_a_reader_waits_for_the_first_item_and_takes_it_alone() -> None:
    """No timer gathers a batch: idle means small."""
    inbox: Inbox[str] = Inbox()
    reader = asyncio.create_task(inbox.take(100))
    await asyncio.sleep(0)
    assert not reader.done()
    inbox.put("first")
    assert await reader == ["first"]


async def test_what_arrives_while_the_reader_is_busy_is_one_batch() -> None:
    """Busy means large."""
    inbox: Inbox[int] = Inbox()
    inbox.put(0)
    assert await inbox.take(500) == [0]
    for number in range(1, 300):
        inbox.put(number)
    assert await inbox.take(500) == list(range(1, 300))


async def test_a_reader_that_gives_up_takes_nothing_with_it() -> None:
    """A cancelled take loses no item."""
    inbox: Inbox[int] = Inbox()
    reader = asyncio.create_task(inbox.take(1))
    await asyncio.sleep(0)
    inbox.put(1)
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    assert await inbox.take(1) == [1]
