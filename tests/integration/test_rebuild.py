"""Rebuilding a product's books on real servers: after every kind of loss they equal Postgres and the log."""

import asyncio
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from infra.kafka.client import make_consumer
from infra.kafka.offsets import Offsets
from sale.books import keys
from sale.books.entry import parse
from sale.books.inventory import Held, Known, Refused, Reservation
from sale.books.key_record import key_hash
from sale.books.rebuild.rebuild import KEY_USED_AGAIN, RebuildImpossible, rebuild, rebuild_if_needed
from sale.books.scripts import SCRIPTS
from sale.orders import read_rows
from sale.tables.queries import SQL
from schemas.clock import now_ms
from schemas.codec import decode
from schemas.events import StockOpened
from schemas.ids import ProductId, UserId, new_order_id
from schemas.order_state import Entry, Status
from schemas.topics import ORDERS

from .books import Sale, a_sale, kill_redis


async def test_a_new_product_opens_with_all_its_stock_and_says_so_on_the_log() -> None:
    async with a_sale(10) as sale:
        assert await sale.units() == (10, 10, 0, 0)
        assert [event.epoch for event in await openings(sale)] == [1]
        assert await sale.pool.fetchval("SELECT verified_at IS NOT NULL FROM products WHERE id = $1", sale.product)


async def test_an_unknown_product_cannot_be_rebuilt() -> None:
    async with a_sale(1) as sale:
        with pytest.raises(RebuildImpossible):
            await rebuild(
                ProductId(7), "test", redis=sale.redis, pool=sale.pool, settings=sale.settings, publisher=sale.publisher
            )


@pytest.mark.parametrize("seed", range(5))
async def test_after_a_wipe_the_books_equal_postgres_and_the_log(seed: int) -> None:
    """A random history, every order published; Redis is emptied; then all is settled and nothing is gone or there twice."""
    draw = random.Random(seed)
    async with a_sale(60) as sale:
        live = confirmed = 0
        again = []
        for user in range(1, 60):
            quantity = draw.randint(1, 3)
            if int((await sale.stock())["available"]) < quantity:
                break
            wish, held = await sale.reserve(user, quantity)
            await sale.publish(wish, held)
            fate = draw.choice(
                ["published", "placed", "confirmed", "declined", "confirmed in postgres", "declined there"]
            )
            if fate != "published":
                await sale.place(wish, held)
            if fate in ("confirmed", "declined"):
                await sale.end(wish, Status.CONFIRMED if fate == "confirmed" else Status.PAYMENT_FAILED)
            elif fate == "confirmed in postgres":
                await sale.end_in_postgres(wish, Status.CONFIRMED)
            elif fate == "declined there":
                await sale.end_in_postgres(wish, Status.PAYMENT_FAILED)
            live += quantity if fate in ("published", "placed") else 0
            confirmed += quantity if fate.startswith("confirmed") else 0
            if fate not in ("published", "placed"):
                again.append(wish.order_id)
        await sale.wipe()
        opened = await sale.rebuild("wiped")
        assert await sale.units() == (60, 60 - live - confirmed, live, confirmed)
        # On the log units are sold with the news of it, which is yet to come.
        assert (opened.available, opened.held, opened.sold) == (60 - live - confirmed, live + confirmed, 0)
        await sale.settle_and_project(again)  # what had ended is announced again, and moves nothing
        assert await sale.units() == (60, 60 - live - confirmed, live, confirmed)
        assert await sale.rebuild("once more") is not None
        assert sum((await sale.units())[1:2]) == 60 - live - confirmed


async def test_orders_that_only_redis_knows_survive_a_rebuild_with_their_versions() -> None:
    async with a_sale(10) as sale:
        wish, held = await sale.reserve(1, 2)
        await sale.rebuild()
        entry = (await sale.inventory.entries(sale.product, [wish.order_id]))[wish.order_id]
        assert (entry.epoch, entry.version, entry.available) == (held.epoch, held.version, held.available)
        assert entry.placed_value == held.value
        assert await sale.units() == (10, 8, 2, 0)
        assert await sale.redis.zcard(keys.due(sale.product)) == 1


async def test_an_order_that_is_parked_is_held_by_the_next_books() -> None:
    """The order stage has read past it and could do nothing: only the parked record tells of it."""
    async with a_sale(3) as sale:
        wish, held = await sale.reserve(1, 2, key="k")
        await sale.wipe()
        await sale.pool.execute(SQL.park_orders, sale.product, [held.value])
        await sale.rebuild("wiped")
        entry = (await sale.inventory.entries(sale.product, [wish.order_id]))[wish.order_id]
        assert entry.placed_value == held.value
        assert await sale.units() == (3, 1, 2, 0)
        assert await sale.inventory.reserve(wish) == Known(wish.order_id, same_body=True)


async def test_an_order_that_ends_while_its_books_are_made_is_looked_at_as_soon_as_they_are_in_force(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The snapshot saw it waiting for its payment; its stage has left it to these books."""
    async with a_sale(10) as sale:
        ended, ended_held = await sale.reserve(1)
        waiting, waiting_held = await sale.reserve(2)
        await sale.place(ended, ended_held)
        await sale.place(waiting, waiting_held)
        publish = sale.publisher.publish

        async def end_and_publish(*args: Any) -> None:
            await sale.end(ended, Status.CONFIRMED)
            await publish(*args)

        with monkeypatch.context() as patched:
            patched.setattr(sale.publisher, "publish", lambda *args: asyncio.ensure_future(end_and_publish(*args)))
            await sale.rebuild()
        entries = await sale.inventory.entries(sale.product, [ended.order_id, waiting.order_id])
        assert [entry.quantity for entry in entries.values()] == [1, 1]
        by_now_ms = now_ms()
        due = {
            wish.order_id: float(await sale.redis.zscore(keys.due(sale.product), wish.order_id) or 0)
            for wish in (ended, waiting)
        }
        assert due[ended.order_id] <= by_now_ms < due[waiting.order_id]


async def test_an_older_copy_of_redis_brings_back_nothing_that_was_sold() -> None:
    async with a_sale(10) as sale:
        early, early_held = await sale.reserve(1, 2)
        await sale.publish(early, early_held)
        copy = {key: await sale.redis.dump(key) for key in await sale.redis.keys("*")}
        await sale.place(early, early_held)
        await sale.end(early, Status.CONFIRMED)
        late, late_held = await sale.reserve(2, 3)
        await sale.publish(late, late_held)
        await sale.wipe()
        for key, value in copy.items():
            await sale.redis.restore(key, 0, value)  # type: ignore[arg-type]  # dump gives bytes
        await sale.rebuild("older copy")
        assert await sale.units() == (10, 5, 3, 2)
        await sale.settle_and_project([early.order_id])
        assert await sale.units() == (10, 5, 3, 2)


async def test_a_redis_that_restarts_during_a_rebuild_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_sale(10) as sale:
        await sale.reserve(1, 2)
        publish = sale.publisher.publish
        killed: list[asyncio.Future[None]] = []

        def publish_and_kill(*args: object, **more: object) -> "asyncio.Future[None]":
            if not killed:
                killed.append(asyncio.ensure_future(kill_redis()))
                return killed[0]
            return publish(*args, **more)  # type: ignore[arg-type]  # passed on as they came

        monkeypatch.setattr(sale.publisher, "publish", publish_and_kill)
        opened = await sale.rebuild()
        assert opened.epoch == 3  # the second was drawn for the run that ended
        assert (await sale.stock())["run"] == await sale.inventory.run()
        assert await sale.units() == (10, 8, 2, 0)


async def test_of_two_rebuilds_at_once_the_one_that_read_first_does_not_open() -> None:
    """As when a rebuild loses its lock's connection unnoticed: a later one has closed the product meanwhile."""
    async with a_sale(10) as sale:
        await sale.redis.hset(keys.stock(sale.product), mapping={"state": "closed", "building": 9})
        all_keys = [keys.stock(sale.product)] + [f"{name}:{{p{sale.product}}}" for name in ("held", "due", "buyers")]
        prepared = [keys.prepared(key, 8) for key in all_keys[1:]]
        answer = await sale.redis.eval(SCRIPTS["open"], 7, *all_keys, *prepared, await sale.inventory.run(), "8")
        assert answer == b"stale"
        assert (await sale.stock())["state"] == "closed"


async def test_rebuilds_of_one_product_take_turns_and_all_succeed() -> None:
    async with a_sale(10) as sale:
        await sale.reserve(1, 2)
        opened = await asyncio.gather(*(sale.rebuild() for _ in range(4)))
        assert sorted(event.epoch for event in opened) == [2, 3, 4, 5]
        assert await sale.units() == (10, 8, 2, 0)


async def test_a_rebuild_that_is_not_needed_is_not_done() -> None:
    async with a_sale(10) as sale:
        stores: dict[str, Any] = {
            "redis": sale.redis,
            "pool": sale.pool,
            "settings": sale.settings,
            "publisher": sale.publisher,
        }
        assert await rebuild_if_needed(sale.product, "test", **stores) is None
        await sale.inventory.close(sale.product)
        assert await rebuild_if_needed(sale.product, "test", **stores) is not None


async def test_an_order_that_the_database_refused_gives_nothing_back_when_it_settles() -> None:
    """Redis had one unit too many; the second order is failed by the database, and its settling moves no unit."""
    async with a_sale(1) as sale:
        await sale.redis.hset(keys.stock(sale.product), mapping={"available": 2, "initial": 2})
        (first, first_held), (second, second_held) = await sale.reserve(1), await sale.reserve(2)
        assert await sale.place(first, first_held) == Status.AWAITING_PAYMENT
        assert await sale.place(second, second_held) == Status.FAILED
        await sale.rebuild("refused")
        assert await sale.units() == (1, 0, 1, 0)
        settlements = await sale.inventory.settle([(sale.product, second.order_id, Entry.RELEASED)])
        assert [s and (s.version, s.available, s.returned) for s in settlements] == [(1, 0, 0)]
        assert await sale.units() == (1, 0, 1, 0)


async def test_units_that_were_released_and_sold_again_are_counted_once() -> None:
    async with a_sale(1) as sale:
        declined, declined_held = await sale.reserve(1)
        await sale.place(declined, declined_held)
        await sale.end(declined, Status.PAYMENT_FAILED)
        bought, bought_held = await sale.reserve(2)
        await sale.place(bought, bought_held)
        await sale.end(bought, Status.CONFIRMED)
        await sale.rebuild()
        assert await sale.units() == (1, 0, 0, 1)
        await sale.settle_and_project([declined.order_id, bought.order_id])
        assert await sale.units() == (1, 0, 0, 1)


async def test_orders_beyond_the_stock_are_failed_uncharged_and_the_product_opens() -> None:
    """Both orders were acknowledged by the log, but the second was given out again after the first was lost with Redis."""
    async with a_sale(1) as sale:
        first, first_held = await sale.reserve(1)
        await sale.wipe()
        await sale.rebuild("wiped before the publish")
        second, second_held = await sale.reserve(2)
        await sale.publish(first, first_held)
        await sale.publish(second, second_held)
        await sale.rebuild("both on the log")
        assert await sale.units() == (1, 0, 1, 0)
        rows = await read_rows(sale.pool, [first.order_id, second.order_id])
        assert {id_: row.status for id_, row in rows.items()} == {second.order_id: Status.FAILED}
        entries = await sale.inventory.entries(sale.product, [first.order_id, second.order_id])
        assert [entries[wish.order_id].quantity for wish in (first, second)] == [1, 0]


async def test_an_order_that_an_old_copy_brings_back_gives_way_where_its_key_was_used_again() -> None:
    """Only Redis knew it, and lost it; so its buyer's next try was a new order. A key stands for one order."""
    async with a_sale(10) as sale:
        lost, _ = await sale.reserve(1, 2, key="k")
        copy: Any = await sale.redis.dump(keys.held(sale.product))
        await sale.wipe()
        await sale.rebuild("wiped")
        kept, held = await sale.reserve(1, 2, key="k")
        await sale.publish(kept, held)
        await sale.place(kept, held)
        await sale.redis.restore(keys.held(sale.product), 0, copy, replace=True)
        await sale.rebuild("an old copy")
        rows = await read_rows(sale.pool, [lost.order_id, kept.order_id])
        assert (rows[lost.order_id].status, rows[lost.order_id].reason) == (Status.FAILED, KEY_USED_AGAIN)
        assert rows[kept.order_id].status is Status.AWAITING_PAYMENT
        assert await sale.units() == (10, 8, 2, 0)
        again = Reservation(new_order_id(), UserId(1), sale.product, 2, 999, "USD", key_hash("k"))
        assert await sale.inventory.reserve(again) == Known(kept.order_id, same_body=True)


async def test_an_order_whose_key_went_to_another_never_answers_for_that_key_again() -> None:
    """Whatever rebuild comes later, and however the other order ends."""
    async with a_sale(10) as sale:
        await sale.reserve(1, 2, key="k")
        copy: Any = await sale.redis.dump(keys.held(sale.product))
        await sale.wipe()
        await sale.rebuild("wiped")
        kept, held = await sale.reserve(1, 2, key="k")
        await sale.publish(kept, held)
        await sale.place(kept, held)
        await sale.redis.restore(keys.held(sale.product), 0, copy, replace=True)
        await sale.rebuild("an old copy")
        await sale.end(kept, Status.PAYMENT_FAILED)
        await sale.wipe()
        await sale.rebuild("wiped again")
        again = Reservation(new_order_id(), UserId(1), sale.product, 2, 999, "USD", key_hash("k"))
        assert await sale.inventory.reserve(again) == Known(kept.order_id, same_body=True)
        hashes = [row["id"] for row in await sale.pool.fetch(SQL.orders_of_keys, [1], [key_hash("k")], 0)]
        assert hashes == [kept.order_id]


async def test_an_order_that_failed_keeps_its_key_as_every_other_that_ended() -> None:
    """Its 202 is repeated after a wipe too; and an order that only an old copy knows does not take the key from it."""
    async with a_sale(10) as sale:
        old, _ = await sale.reserve(1, 2, key="k")
        copy: Any = await sale.redis.dump(keys.held(sale.product))
        await sale.wipe()
        await sale.rebuild("wiped")
        await sale.pool.execute("UPDATE products SET taken = initial WHERE id = $1", sale.product)
        failed, held = await sale.reserve(1, 2, key="k")
        assert await sale.place(failed, held) == Status.FAILED
        await sale.pool.execute("UPDATE products SET taken = 0 WHERE id = $1", sale.product)
        await sale.wipe()
        await sale.redis.restore(keys.held(sale.product), 0, copy)
        await sale.rebuild("an old copy")
        again = Reservation(new_order_id(), UserId(1), sale.product, 2, 999, "USD", key_hash("k"))
        assert await sale.inventory.reserve(again) == Known(failed.order_id, same_body=True)
        assert (await read_rows(sale.pool, [old.order_id]))[old.order_id].reason == KEY_USED_AGAIN
        assert await sale.units() == (10, 10, 0, 0)


async def test_orders_that_are_only_announced_again_leave_room_for_buyers() -> None:
    """What has ended since the books were last verified counts as sold or on sale, not as a backlog that answers `busy`."""
    async with a_sale(10) as sale:
        bounded = Sale(
            sale.settings.model_copy(update={"max_held": 1}),
            *(sale.redis, sale.pool, sale.publisher, sale.inventory, sale.desk, sale.product),
        )
        ended = []
        for user in (1, 2):
            wish, held = await sale.reserve(user, 2)
            await sale.publish(wish, held)
            await sale.place(wish, held)
            await sale.end(wish, Status.CONFIRMED)
            ended.append(wish.order_id)
        await sale.wipe()
        await bounded.rebuild("wiped")
        assert await sale.units() == (10, 6, 0, 4)
        wish, _ = await sale.reserve(3, 3)
        assert await sale.inventory.reserve(replace(wish, order_id=new_order_id())) == Refused("busy")
        await sale.settle_and_project(ended)
        assert await sale.units() == (10, 3, 3, 4)


async def test_a_hundred_thousand_orders_that_are_announced_again_keep_nobody_from_buying() -> None:
    """As many as may be held have ended, in a sale that never rested; Redis comes back empty."""
    async with a_sale(200_000) as sale:
        assert sale.settings.max_held == 100_000
        await sale.pool.execute(
            """INSERT INTO orders (id, product_id, user_id, quantity, unit_price_cents, currency, status, epoch, version, available,
                placed_at_ms, updated_at)
            SELECT gen_random_uuid(), $1, n, 1, 999, 'USD', 'confirmed', 1, n, 200000 - n, 1, clock_timestamp()
            FROM generate_series(1, 100000) AS n""",
            sale.product,
        )
        await sale.pool.execute("UPDATE products SET taken = 100000 WHERE id = $1", sale.product)
        await sale.wipe()
        await sale.rebuild("wiped")
        assert await sale.redis.hlen(keys.held(sale.product)) == 100_000
        await sale.reserve(1, 3)
        assert await sale.units() == (200_000, 99_997, 3, 100_000)


async def test_keys_limits_and_statuses_are_known_again_after_a_wipe() -> None:
    async with a_sale(10, per_user_limit=3) as sale:
        queued, queued_held = await sale.reserve(1, 2, key="a")
        await sale.publish(queued, queued_held)
        placed, placed_held = await sale.reserve(2, 3, key="b")
        await sale.place(placed, placed_held)
        await sale.wipe()
        await sale.rebuild("wiped")
        for wish in (queued, placed):
            answer = await sale.inventory.reserve(wish)
            assert answer == Known(wish.order_id, same_body=True)
        assert await sale.redis.hget(keys.order(queued.order_id), "status") == b"queued"
        assert await sale.redis.hget(keys.order(placed.order_id), "status") == b"awaiting_payment"
        assert await sale.redis.zrange(keys.unstored(UserId(1)), 0, -1) == [queued.order_id.encode()]
        assert await sale.redis.exists(keys.unstored(UserId(2))) == 0
        wish, _ = await sale.reserve(1, 1)  # the third of three
        refused = await sale.inventory.reserve(replace(wish, order_id=new_order_id()))
        assert refused == Refused("user_limit")


async def test_a_read_model_that_is_further_on_stays() -> None:
    async with a_sale(10) as sale:
        wish, held = await sale.reserve(1)
        await sale.place(wish, held)
        await sale.redis.hset(keys.order(wish.order_id), mapping={"status": "processing_payment", "rank": 50})
        await sale.rebuild()
        assert await sale.redis.hget(keys.order(wish.order_id), "status") == b"processing_payment"


async def test_what_ended_long_before_the_last_verification_is_sold_and_not_announced_again() -> None:
    async with a_sale(10) as sale:
        wish, held = await sale.reserve(1, 4)
        await sale.place(wish, held)
        await sale.end(wish, Status.CONFIRMED)
        await sale.pool.execute(SQL.mark_verified, sale.product, await sale.pool.fetchval("SELECT now()"))
        await sale.pool.execute(
            "UPDATE orders SET updated_at = updated_at - interval '2 minutes' WHERE id = $1", wish.order_id
        )
        await sale.wipe()
        await sale.rebuild()
        assert await sale.units() == (10, 6, 0, 4)


async def test_what_a_rebuild_takes_in_to_be_announced_is_taken_in_by_the_next_if_nobody_announced_it() -> None:
    async with a_sale(10) as sale:
        wish, held = await sale.reserve(1, 4)
        await sale.place(wish, held)
        await sale.end_in_postgres(wish, Status.CONFIRMED)
        await sale.pool.execute(
            "UPDATE orders SET updated_at = updated_at - interval '5 minutes' WHERE id = $1", wish.order_id
        )
        await sale.rebuild()  # the entry survived
        await sale.wipe()
        await sale.rebuild("wiped before it was announced")
        assert await sale.units() == (10, 6, 0, 4)
        assert await sale.inventory.entries(sale.product, [wish.order_id])


async def test_what_ends_after_postgres_clock_was_set_back_is_announced_again() -> None:
    """The mark lies ahead of the clock by then, and what has ended since is dated before it."""
    async with a_sale(10) as sale:
        wish, held = await sale.reserve(1, 4)
        await sale.place(wish, held)
        await sale.pool.execute(
            "UPDATE products SET verified_at = now() + interval '1 hour' WHERE id = $1", sale.product
        )
        await sale.end_in_postgres(wish, Status.CONFIRMED)
        await sale.wipe()
        await sale.rebuild("wiped after the clock was set back")
        assert await sale.inventory.entries(sale.product, [wish.order_id])
        await sale.pool.execute(SQL.mark_verified, sale.product, datetime.now(UTC) + timedelta(hours=1))
        marked = await sale.pool.fetchval("SELECT verified_at <= now() FROM products WHERE id = $1", sale.product)
        assert marked, "a mark that lies ahead was taken"


async def test_an_unreadable_entry_is_left_out() -> None:
    async with a_sale(10) as sale:
        wish, _ = await sale.reserve(1, 2)
        await sale.redis.hset(keys.held(sale.product), wish.order_id[:-4] + "0000", "no entry")
        await sale.rebuild()
        lines: dict[Any, Any] = await sale.redis.hgetall(keys.held(sale.product))
        assert [parse(wish.order_id, line).quantity for line in lines.values()] == [2]


async def test_while_the_books_are_rebuilt_nothing_is_reserved() -> None:
    async with a_sale(1_000) as sale:
        answers: list[object] = []

        async def buy() -> None:
            for user in range(1, 200):
                wish, held = None, None
                try:
                    wish, held = await sale.reserve(user)
                except AssertionError as refused:
                    answers.append(refused.args[0])
                else:
                    answers.append(held)
                    assert wish is not None

        buying = asyncio.create_task(buy())
        for _ in range(3):
            await sale.rebuild("under load")
        await buying
        accepted = [answer for answer in answers if isinstance(answer, Held)]
        assert await sale.units() == (1_000, 1_000 - len(accepted), len(accepted), 0)
        assert all(answer == Refused("unverified") for answer in answers if not isinstance(answer, Held))


async def openings(sale: Sale) -> list[StockOpened]:
    """The product's stock.opened on the log."""
    offsets = Offsets(sale.settings)
    ends = await offsets.ends(ORDERS)
    await offsets.close()
    consumer = make_consumer(sale.settings, ORDERS.name)
    await consumer.start()
    found: list[StockOpened] = []
    try:
        while any([await consumer.position(tp) < ends[tp.partition] for tp in consumer.assignment()]):
            for records in (await consumer.getmany(timeout_ms=500)).values():
                events = [decode(record.value) for record in records]
                found += [e for e in events if isinstance(e, StockOpened) and e.product_id == sale.product]
    finally:
        await consumer.stop()
    return found
