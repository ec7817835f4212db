"""Dead letters on real servers: found, shown, and sent again exactly once, a failed order as a new one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from consumers.dead_letters import show
from consumers.dead_letters.comebacks import came_back, processed
from consumers.dead_letters.letters import DlqError, Letter, condition, find_letter, matching, resolve
from consumers.dead_letters.redrive import Fate, Redrive
from infra.kafka.client import make_consumer
from infra.kafka.offsets import Offsets
from sale.books.inventory import Held, Reservation
from sale.tables.queries import SQL
from schemas.codec import decode
from schemas.events import OrderPlaced
from schemas.ids import OrderId, new_order_id
from schemas.order_state import Status
from schemas.topics import DEAD_LETTERS, ORDERS, PAYMENTS, Topic
from streams.dead_letters import DeadLetters

from .books import Sale, a_sale


@dataclass(slots=True)
class Desk:
    """A sale, its letters and who redrives them. Letters are told apart by their key."""

    sale: Sale
    redrive: Redrive

    async def bury(self, topic: Topic, key: str, value: bytes, reason: str = "test") -> None:
        await DeadLetters(self.sale.publisher).send(topic.name, 2, 17, key.encode(), value, reason)

    async def letters(self, key: str, *where: str, closed_too: bool = False) -> list[Letter]:
        wanted = [condition(text) for text in (f"key={key}", *where)]
        return await matching(self.sale.settings, self.sale.pool, wanted, closed_too=closed_too)

    async def send_again(self, key: str, *, rate: float = 1_000, dry_run: bool = False) -> list[Fate]:
        return [fate async for fate in self.redrive.run(await self.letters(key), rate=rate, dry_run=dry_run)]

    async def failed_order(self, quantity: int = 1) -> tuple[Reservation, Held]:
        """An order whose row is `failed` and whose units are back."""
        wish, held = await self.sale.reserve(7, quantity)
        head = (wish.order_id, wish.product_id, wish.user_id, quantity, "a fault of ours")
        await self.sale.pool.execute(
            SQL.fail_order, *head, held.epoch, held.version, held.available, None, held.at_ms, False
        )
        await self.sale.settle_and_project([wish.order_id])
        await self.bury(ORDERS, wish.order_id, held.value, "postgres: a fault of ours")
        return wish, held


@asynccontextmanager
async def a_desk(stock: int = 10) -> AsyncIterator[Desk]:
    async with a_sale(stock) as sale:
        yield Desk(sale, Redrive(sale.settings, sale.pool, sale.inventory, sale.publisher, "ned"))


async def values(sale: Sale, topic: Topic, key: str) -> list[bytes]:
    """Everything on a topic under a key."""
    offsets = Offsets(sale.settings)
    ends = await offsets.ends(topic)
    await offsets.close()
    consumer = make_consumer(sale.settings, topic.name)
    await consumer.start()
    found: list[bytes] = []
    try:
        while any([await consumer.position(tp) < ends[tp.partition] for tp in consumer.assignment()]):
            for records in (await consumer.getmany(timeout_ms=500)).values():
                found += [record.value for record in records if record.key == key.encode()]
    finally:
        await consumer.stop()
    return found


async def test_a_letter_says_where_it_came_from_and_why() -> None:
    async with a_desk() as desk:
        key = new_order_id()
        await desk.bury(PAYMENTS, key, b'{"odd": 1}', "missing field `type`")
        (letter,) = await desk.letters(key)
        assert (letter.topic, letter.source_partition, letter.source_offset) == ("payments", 2, 17)
        assert (letter.reason, letter.value, letter.cut, letter.redriven) == (
            *("missing field `type`", b'{"odd": 1}'),
            *(False, None),
        )
        assert await find_letter(desk.sale.settings, desk.sale.pool, letter.name) == letter
        assert show.as_page(letter)["value"] == {"odd": 1}
        assert letter.name in show.listing([letter])
        assert "missing field" in show.page(letter)


async def test_letters_are_chosen_by_their_fields() -> None:
    async with a_desk() as desk:
        key = new_order_id()
        await desk.bury(PAYMENTS, key, b"x", "first Reason")
        await desk.bury(ORDERS, key, b"y", "second reason")
        assert [letter.value for letter in await desk.letters(key, "reason~REASON")] == [b"x", b"y"]
        assert [letter.value for letter in await desk.letters(key, "reason=second reason")] == [b"y"]
        assert [letter.value for letter in await desk.letters(key, "topic=payments", "type=unreadable")] == [b"x"]
        assert await desk.letters(key, "product=1") == []


@pytest.mark.parametrize("where", ["", "reason", "colour=red", "=x", "~x"])
def test_a_condition_that_makes_no_sense_is_refused(where: str) -> None:
    with pytest.raises(ValueError, match="FIELD is letter, topic"):
        condition(where)


async def test_a_letter_that_is_not_there_is_refused() -> None:
    async with a_desk() as desk:
        for act in (find_letter, partial(resolve, who="ned", why="x")):
            with pytest.raises(DlqError, match="there is no letter 0:99999999"):
                await act(desk.sale.settings, desk.sale.pool, "0:99999999")


async def test_original_bytes_go_back_to_their_topic_once() -> None:
    """A second redrive finds the letter marked."""
    async with a_desk() as desk:
        key = new_order_id()
        await desk.bury(PAYMENTS, key, b"\xff\x00 as it was")
        for expected in ["republished"], []:
            assert [fate.done for fate in await desk.send_again(key)] == expected
            assert await values(desk.sale, PAYMENTS, key) == [b"\xff\x00 as it was"]
        assert await desk.letters(key) == []
        (letter,) = await desk.letters(key, closed_too=True)
        assert letter.redriven is not None
        assert letter.redriven.who == "ned"


async def test_a_dry_run_changes_nothing() -> None:
    async with a_desk() as desk:
        wish, _ = await desk.failed_order()
        before = await desk.sale.units()
        assert [fate.done for fate in await desk.send_again(wish.order_id, dry_run=True)] == ["new_order"]
        assert await values(desk.sale, ORDERS, wish.order_id) == []
        assert len(await desk.letters(wish.order_id)) == 1
        assert await desk.sale.units() == before


async def test_a_failed_order_becomes_a_new_one_that_says_where_it_comes_from() -> None:
    """Its units are reserved like everybody's; two letters of one order make one successor."""
    async with a_desk() as desk:
        wish, held = await desk.failed_order(quantity=3)
        await desk.bury(ORDERS, wish.order_id, held.value, "again")
        first, second = await desk.send_again(wish.order_id)
        assert (first.done, second.done, first.new_order_id) == ("new_order", "new_order", second.new_order_id)
        assert first.new_order_id not in (None, wish.order_id)
        (value,) = await values(desk.sale, ORDERS, str(first.new_order_id))
        event = decode(value)
        assert isinstance(event, OrderPlaced)
        assert (event.redriven_from, event.user_id, event.quantity) == (wish.order_id, 7, 3)
        assert await desk.sale.units() == (10, 7, 3, 0)
        entries = await desk.sale.inventory.entries(desk.sale.product, [OrderId(event.order_id)])
        assert entries[OrderId(event.order_id)].placed_value == value  # what the relay would publish


async def test_a_redrive_that_dies_before_the_mark_takes_no_units_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The letter is not marked, so it is redriven again, and the same order is found."""
    async with a_desk() as desk:
        wish, _ = await desk.failed_order()

        def die(*_: Any) -> None:
            raise OSError("killed here")

        with monkeypatch.context() as killing:
            killing.setattr(desk.redrive, "_mark", die)
            with pytest.raises(OSError, match="killed here"):
                await desk.send_again(wish.order_id)
        (fate,) = await desk.send_again(wish.order_id)
        assert fate.done == "new_order"
        assert len(set(await values(desk.sale, ORDERS, str(fate.new_order_id)))) == 1
        assert await desk.sale.units() == (10, 9, 1, 0)


async def test_a_redrive_that_died_between_reserving_and_publishing_publishes_before_it_marks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The units are held already; that the relay would publish them some day is no acknowledgement."""
    async with a_desk() as desk:
        wish, _ = await desk.failed_order()

        async def die(*_: Any) -> None:
            raise OSError("killed here")

        with monkeypatch.context() as killing:
            killing.setattr(desk.redrive, "_acknowledged", die)
            with pytest.raises(OSError, match="killed here"):
                await desk.send_again(wish.order_id)
        assert await desk.sale.units() == (10, 9, 1, 0)
        (fate,) = await desk.send_again(wish.order_id)
        assert len(await values(desk.sale, ORDERS, str(fate.new_order_id))) == 1
        assert await desk.sale.units() == (10, 9, 1, 0)
        assert await desk.letters(wish.order_id) == []


async def test_nothing_is_marked_before_the_broker_has_acknowledged(monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_desk() as desk:
        key = new_order_id()
        await desk.bury(PAYMENTS, key, b"x")
        letters = await desk.letters(key)
        acknowledged = asyncio.get_running_loop().create_future()
        monkeypatch.setattr(desk.sale.publisher, "publish", lambda *_: acknowledged)
        fates = desk.redrive.run(letters, rate=1_000, dry_run=False)
        sending = asyncio.ensure_future(anext(fates))
        await asyncio.sleep(0.2)
        assert await desk.letters(key) == letters
        acknowledged.set_result(None)
        assert (await sending).done == "republished"
        assert await desk.letters(key) == []
        await fates.aclose()  # type: ignore[attr-defined]  # an async generator


async def test_a_failed_order_that_finds_no_units_stays_in_the_list() -> None:
    async with a_desk(stock=2) as desk:
        wish, _ = await desk.failed_order(quantity=2)
        await desk.sale.reserve(8)
        (fate,) = await desk.send_again(wish.order_id)
        assert (fate.done, fate.detail) == ("refused", "no units: sold_out")
        assert len(await desk.letters(wish.order_id)) == 1


async def test_a_letter_that_holds_only_a_beginning_is_not_sent() -> None:
    """Its source topic has the whole record."""
    async with a_desk() as desk:
        key = new_order_id()
        await desk.bury(PAYMENTS, key, b"x" * 950_000)
        (fate,) = await desk.send_again(key)
        assert fate.done == "refused"
        assert "payments partition 2 offset 17" in fate.detail
        await desk.sale.publisher.publish(DEAD_LETTERS, key, b"not by a stage")
        assert [fate.done for fate in await desk.send_again(key)] == ["refused", "refused"]


async def test_redriving_keeps_to_its_rate() -> None:
    async with a_desk() as desk:
        key = new_order_id()
        for n in range(5):
            await desk.bury(PAYMENTS, key, b"%d" % n)
        started = asyncio.get_running_loop().time()
        await desk.send_again(key, rate=10)
        assert asyncio.get_running_loop().time() - started >= 0.4
        assert await values(desk.sale, PAYMENTS, key) == [b"0", b"1", b"2", b"3", b"4"]


async def test_a_letter_whose_order_has_ended_meanwhile_is_marked_and_hidden() -> None:
    """Also where the record cannot be read: its key says whose it is. One that failed is what a redrive makes anew."""
    async with a_desk() as desk:
        wish, held = await desk.sale.reserve(7)
        await desk.bury(ORDERS, wish.order_id, held.value)
        await desk.bury(PAYMENTS, wish.order_id, b"unreadable")
        assert len(await desk.letters(wish.order_id)) == 2
        await desk.sale.place(wish, held)
        assert len(await desk.letters(wish.order_id)) == 2  # stored, and still under way
        await desk.sale.end(wish, Status.CONFIRMED)
        assert await desk.letters(wish.order_id) == []
        assert await desk.send_again(wish.order_id) == []
        found = await desk.letters(wish.order_id, closed_too=True)
        assert [letter.ended for letter in found] == [Status.CONFIRMED] * 2
        assert "(its order is confirmed)" in show.listing(found)
        failed, _ = await desk.failed_order()
        assert [letter.ended for letter in await desk.letters(failed.order_id)] == [None]


async def test_a_letter_is_resolved_once_with_who_and_why() -> None:
    async with a_desk() as desk:
        key = new_order_id()
        await desk.bury(PAYMENTS, key, b"x")
        (letter,) = await desk.letters(key)
        for who, why in (("ned", "a test of ours"), ("cat", "no")):
            resolved = (await resolve(desk.sale.settings, desk.sale.pool, letter.name, who, why)).resolved
            assert resolved is not None
            assert (resolved.who, resolved.why) == ("ned", "a test of ours")
        assert await desk.letters(key) == []
        assert await desk.send_again(key) == []
        (closed,) = await desk.letters(key, closed_too=True)
        assert "(resolved: a test of ours)" in show.listing([closed])
        assert show.as_row(closed)["resolved_by"] == "ned"


async def test_a_redrive_that_comes_back_says_so() -> None:
    """Dead once more: the new letter names the one that was sent. A copy that was dead before is no comeback."""
    async with a_desk() as desk:
        key = new_order_id()
        await desk.bury(PAYMENTS, key, b"poison")
        await desk.bury(PAYMENTS, key, b"poison")
        first, copy = await desk.letters(key)
        fates = [fate async for fate in desk.redrive.run([first], rate=1_000, dry_run=False)]
        sale = desk.sale
        assert await came_back(sale.settings, sale.pool, [fate.letter for fate in fates]) == []
        await desk.bury(PAYMENTS, key, b"poison", "as bad as ever")
        (again,) = await came_back(sale.settings, sale.pool, [fate.letter for fate in fates])
        assert again.came_back_from == first.name
        assert show.comeback(again) == f"{first.name} came back as {again.name}: as bad as ever"
        assert [letter.came_back_from for letter in await desk.letters(key)] == [None, first.name]
        assert f"(came back: {first.name} was redriven)" in show.listing([again])
        assert copy.came_back_from is None


async def test_a_new_order_that_ends_among_the_dead_letters_comes_back_as_well() -> None:
    async with a_desk() as desk:
        wish, _ = await desk.failed_order()
        (letter,) = await desk.letters(wish.order_id)
        (fate,) = await desk.send_again(wish.order_id)
        assert fate.new_order_id is not None
        await desk.bury(ORDERS, fate.new_order_id, b"whatever")
        (again,) = await came_back(desk.sale.settings, desk.sale.pool, [letter.name])
        assert again.came_back_from == letter.name


async def test_what_nobody_processes_is_not_waited_for_for_ever() -> None:
    """Topics without a group (`stock-changes`) have nobody to wait for."""
    async with a_desk() as desk:
        assert await processed(desk.sale.settings, ["stock-changes"], within_s=5)
        await desk.sale.publisher.publish(PAYMENTS, "x", b"x")
        assert not await processed(desk.sale.settings, ["payments"], within_s=0.5)
