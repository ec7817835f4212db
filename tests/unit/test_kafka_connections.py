"""A consumer that was given up while it was connecting is stopped: it may hold connections already."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

import consumers.audit.readers
import infra.kafka.watermarks
import sale.books.rebuild.sources
from infra.settings import Settings
from schemas.ids import ProductId
from schemas.topics import ORDER_STAGE_GROUP


class Connecting:
    """Never gets as far as to be started."""

    stopped = 0

    async def start(self) -> None:
        await asyncio.Event().wait()

    async def stop(self) -> None:
        self.stopped += 1


class SomeOffsets:
    """Each log has one record that nobody has processed."""

    def __init__(self, *_: object) -> None:
        pass

    async def partitions(self, _topic: object) -> list[int]:
        return [0]

    async def begins(self, _topic: object) -> dict[int, int]:
        return {0: 0}

    async def committed(self, _group: str, _topic: object) -> dict[int, int]:
        return {0: 0}

    async def ends(self, _topic: object) -> dict[int, int]:
        return {0: 1}

    async def close(self) -> None:
        pass


async def ask_for_a_delay(offsets: Any) -> None:
    await infra.kafka.watermarks.Watermarks(Settings()).delay_s(ORDER_STAGE_GROUP)


async def read_what_was_placed(offsets: Any) -> None:
    found: AsyncIterator[object] = sale.books.rebuild.sources.placed_since(Settings(), offsets, {}, ProductId(1))
    async for _ in found:
        pass


async def audit_the_log(offsets: Any) -> None:
    await consumers.audit.readers.read_log(Settings(), offsets)


@pytest.mark.parametrize("asking", [ask_for_a_delay, read_what_was_placed, audit_the_log])
async def test_a_consumer_that_is_given_up_while_it_connects_is_stopped(
    asking: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer = Connecting()
    for module in (infra.kafka.watermarks, sale.books.rebuild.sources, consumers.audit.readers):
        monkeypatch.setattr(module, "make_consumer", lambda *_, **__: consumer)
    monkeypatch.setattr(infra.kafka.watermarks, "Offsets", SomeOffsets)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await asking(SomeOffsets())
    assert consumer.stopped == 1
