"""Redis with older data than a moment ago, its process living on: nothing is accepted from old books, and nothing is lost.

Each test stands beside the control that shows what would happen without the guard.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from hashlib import sha1
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from infra.redis.client import Redis
from sale.books import keys
from sale.books.inventory import Held, Inventory, NotVerified, Refused, Reservation
from sale.books.key_record import key_hash
from sale.books.scripts import DIGESTS, SCRIPTS
from schemas.ids import UserId, new_order_id
from schemas.order_state import Entry
from tests.replica import Replica, a_replica

from .books import Sale, a_sale, settings
from .test_relay import a_relay, until

RUN = "redis.call('INFO', 'replication'), 'role:master.-master_replid:(%x+)'"
RUN_OF_THE_PROCESS = "redis.call('INFO', 'server'), 'run_id:(%x+)'"


@contextmanager
def run_of_the_process_alone() -> Iterator[None]:
    """The control: scripts and rebuild ask for `run_id`."""

    async def run_id(redis: Redis) -> str:
        return str((await redis.info("server"))["run_id"])

    scripts = {name: body.replace(RUN, RUN_OF_THE_PROCESS) for name, body in SCRIPTS.items()}
    assert scripts != SCRIPTS
    digests = {name: sha1(body.encode(), usedforsecurity=False).hexdigest() for name, body in scripts.items()}
    with (
        patch.dict(SCRIPTS, scripts),
        patch.dict(DIGESTS, digests),
        patch("sale.books.rebuild.rebuild.present_run", run_id),
    ):
        yield


@asynccontextmanager
async def a_sale_with_a_replica(home: Path, stock: int = 100) -> AsyncIterator[tuple[Sale, Replica]]:
    """Its books were made after the replica began to follow."""
    async with a_replica(settings(), home) as replica, a_sale(stock, opened=False) as sale:
        await replica.follow()
        await sale.rebuild("opened")
        yield sale, replica


async def go_back(sale: Sale, replica: Replica) -> list[tuple[Reservation, Held]]:
    """Three orders are known to the replica, four more are not; all seven are on the log. Then its data is put in force."""
    orders = [await sale.reserve(user) for user in range(1, 4)]
    assert await replica.primary.wait(1, 5_000) == 1
    await replica.stop_following()
    orders += [await sale.reserve(user) for user in range(4, 8)]
    for wish, held in orders:
        await sale.publish(wish, held)
    await replica.put_in_force()
    return orders


def a_wish(sale: Sale, user: int) -> Reservation:
    return Reservation(new_order_id(), UserId(user), sale.product, 1, 999, "USD")


async def test_nothing_is_accepted_from_old_books_that_a_replica_put_in_force(tmp_path: Path) -> None:
    async with a_sale_with_a_replica(tmp_path) as (sale, replica):
        process = (await replica.primary.info("server"))["run_id"]
        orders = await go_back(sale, replica)
        assert (await replica.primary.info("server"))["run_id"] == process
        newcomer = Inventory(sale.redis)  # who has seen nothing of these books
        assert await newcomer.reserve(a_wish(sale, 9)) == Refused("unverified")
        with pytest.raises(NotVerified):
            await newcomer.settle([(sale.product, orders[0][0].order_id, Entry.SOLD)])
        await sale.rebuild("redis went back")
        assert await sale.units() == (100, 93, 7, 0)
        entries = await sale.inventory.entries(sale.product, [wish.order_id for wish, _ in orders])
        assert [entries[wish.order_id].placed_value for wish, _ in orders] == [held.value for _, held in orders]
        _, held = await sale.reserve(9)
        assert (held.epoch, held.version) == (2, 1)


async def test_by_the_process_alone_old_books_sell_again_under_versions_that_were_used(tmp_path: Path) -> None:
    """The control."""
    with run_of_the_process_alone():
        async with a_sale_with_a_replica(tmp_path) as (sale, replica):
            orders = await go_back(sale, replica)
            answer = await Inventory(sale.redis).reserve(a_wish(sale, 9))
            assert isinstance(answer, Held)
            assert (answer.epoch, answer.version) in [(held.epoch, held.version) for _, held in orders]


async def test_the_relay_makes_the_books_anew_and_keeps_every_order(tmp_path: Path) -> None:
    async with a_sale_with_a_replica(tmp_path) as (sale, replica), a_relay(sale):
        orders = await go_back(sale, replica)
        await until(lambda: is_of_epoch(sale, 2))
        assert await sale.units() == (100, 93, 7, 0)
        assert len(await sale.inventory.entries(sale.product, [wish.order_id for wish, _ in orders])) == 7


@contextmanager
def nobody_says_what_he_has_seen() -> Iterator[None]:
    with patch.object(Inventory, "_record_seen", lambda *_: None):
        yield


async def put_back_by_hand(sale: Sale, copy: dict[Any, Any]) -> None:
    """A copy restored in place: neither `run_id` nor the replication id says anything of it."""
    async with sale.redis.pipeline(transaction=True) as pipe:
        pipe.flushdb()
        for key, value in copy.items():
            pipe.restore(key, 0, value)
        await pipe.execute()


async def copy_of(sale: Sale) -> dict[Any, Any]:
    return {key: await sale.redis.dump(key) for key in await sale.redis.keys("*")}


async def test_a_worker_that_has_seen_newer_books_refuses_a_copy_restored_by_hand_and_closes_it() -> None:
    async with a_sale(10) as sale:
        await sale.reserve(1)
        copy = await copy_of(sale)
        kept, held = await sale.reserve(2)
        await sale.publish(kept, held)
        await put_back_by_hand(sale, copy)
        assert await sale.inventory.reserve(a_wish(sale, 3)) == Refused("unverified")
        assert (await sale.stock())["state"] == "closed"
        assert await Inventory(sale.redis).reserve(a_wish(sale, 3)) == Refused("unverified")
        await sale.rebuild("closed")
        assert await sale.units() == (10, 8, 2, 0)
        await sale.reserve(3)


async def test_settling_in_older_books_than_were_seen_waits_and_closes_them() -> None:
    async with a_sale(10) as sale:
        wish, _ = await sale.reserve(1)
        copy = await copy_of(sale)
        await sale.reserve(2)
        await put_back_by_hand(sale, copy)
        with pytest.raises(NotVerified):
            await sale.inventory.settle([(sale.product, wish.order_id, Entry.SOLD)])
        assert (await sale.stock())["state"] == "closed"


async def test_where_nobody_says_what_he_has_seen_a_copy_restored_by_hand_sells_a_version_twice() -> None:
    """The control."""
    with nobody_says_what_he_has_seen():
        async with a_sale(10) as sale:
            copy = await copy_of(sale)
            _, first = await sale.reserve(1)
            await put_back_by_hand(sale, copy)
            _, second = await sale.reserve(2)
            assert (first.epoch, first.version) == (second.epoch, second.version)


async def test_the_relay_notices_a_copy_restored_by_hand_while_nobody_buys() -> None:
    async with a_sale(10) as sale, a_relay(sale):
        copy = await copy_of(sale)
        wish, held = await sale.reserve(1)
        await sale.publish(wish, held)
        await asyncio.sleep(1.0)  # the relay has looked at the books several times
        await put_back_by_hand(sale, copy)
        await until(lambda: is_of_epoch(sale, 2))
        assert await sale.units() == (10, 9, 1, 0)


async def test_flushall_leaves_no_books_to_sell_from_and_loses_nothing() -> None:
    async with a_sale(10) as sale:
        wish, held = await sale.reserve(1, 2, key="k")
        await sale.publish(wish, held)
        run = await sale.inventory.run()
        await sale.redis.flushall()
        assert await sale.inventory.run() == run  # it says nothing
        assert await Inventory(sale.redis).reserve(a_wish(sale, 2)) == Refused("unverified")
        await sale.rebuild("no books")
        assert await sale.units() == (10, 8, 2, 0)
        assert await sale.redis.exists(keys.key_record(UserId(1), key_hash("k")))


async def test_a_replica_refuses_and_is_no_place_for_books(tmp_path: Path) -> None:
    async with a_sale_with_a_replica(tmp_path) as (sale, replica):
        await replica.redis.config_set("replica-read-only", "no")
        assert await Inventory(replica.redis).reserve(a_wish(sale, 1)) == Refused("unverified")


async def is_of_epoch(sale: Sale, epoch: int) -> bool:
    stock = await sale.stock()
    return stock.get("epoch") == str(epoch) and stock.get("state") == "open"
