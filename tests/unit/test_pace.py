"""Whether waiting for company pays: only while enough comes, and an inbox waits only then."""

import asyncio

from infra.pace import WINDOW_S, Pace, Portion
from streams.inbox import Inbox

BUSY_PER_S = 100.0


def _steady(per_s: float, seconds: float = 1.0, gather_s: float = 0.0) -> Pace:
    pace, step_s = Pace(BUSY_PER_S, gather_s), 1 / per_s
    for number in range(1, int(per_s * seconds) + 1):
        pace.add(1, number * step_s)
    return pace


def test_a_pace_is_busy_from_its_rate_on() -> None:
    assert _steady(2 * BUSY_PER_S).busy
    assert not _steady(BUSY_PER_S / 2).busy


def test_a_burst_is_noticed_within_a_window_and_its_end_with_the_first_one_after_it() -> None:
    pace = _steady(BUSY_PER_S / 10, seconds=10)
    pace.add(100, 10 + 2 * WINDOW_S)
    assert pace.busy
    pace.add(1, 20.0)
    assert not pace.busy


def test_who_has_half_of_the_whole_is_busy_at_half_the_rate() -> None:
    part = Portion()
    pace = Pace(BUSY_PER_S, part=part)
    for of_all, busy in ((1.0, False), (0.5, True)):
        part.of_all = of_all
        pace.add(int(0.6 * BUSY_PER_S), 1 / of_all)  # within a second
        assert pace.busy is busy


async def test_an_inbox_gathers_while_busy_and_hands_over_at_once_while_not() -> None:
    """What comes while the reader waits is in the same batch; a lone item is not kept for it."""
    pace = Pace(BUSY_PER_S, gather_s=0.02)
    inbox: Inbox[int] = Inbox(pace)
    for busy, batch in ((False, [1]), (True, [1, 2])):
        pace.busy = busy
        reader = asyncio.create_task(inbox.take(100))
        await asyncio.sleep(0)
        inbox.put(1)
        await asyncio.sleep(0.001)
        inbox.put(2)
        assert await reader == batch
        while len(inbox):
            await inbox.take(100)


async def test_an_inbox_with_a_whole_batch_does_not_wait_for_more() -> None:
    inbox: Inbox[int] = Inbox(_steady(2 * BUSY_PER_S, gather_s=3_600.0))
    for number in range(10):
        inbox.put(number)
    async with asyncio.timeout(1):
        assert await inbox.take(10) == list(range(10))


async def test_a_reader_that_gives_up_while_gathering_takes_nothing_with_it() -> None:
    inbox: Inbox[int] = Inbox(_steady(2 * BUSY_PER_S, gather_s=3_600.0))
    inbox.put(1)
    reader = asyncio.create_task(inbox.take(10))
    await asyncio.sleep(0)
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    assert len(inbox) == 1
