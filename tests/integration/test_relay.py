"""The relay on real servers: what is stranded is pushed on, what is merely waiting is not, and lost books are made anew."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from consumers.relay import decisions as relay_decisions
from consumers.relay import relay
from consumers.relay.decisions import Allowance
from consumers.relay.keeper import Keeper
from consumers.relay.pushes import Pusher
from infra.kafka.client import make_consumer
from infra.kafka.offsets import Offsets
from infra.kafka.watermarks import Watermarks
from infra.leadership import RELAY_LOCK, WorkFailed, lead
from infra.lifecycle import Stop
from sale.books import keys
from sale.books.rebuild.lock import books_lock
from sale.openings import EventLog
from sale.tables.queries import SQL
from schemas import topics
from schemas.clock import since_boot_ms
from schemas.codec import decode
from schemas.events import OrderStatusChanged, PaymentRequested, StockChanged
from schemas.ids import OrderId
from schemas.order_state import Entry, Status
from schemas.topics import ORDER_STAGE_GROUP, ORDER_STATUS, ORDERS, PAYMENT_STAGE_GROUP, PAYMENTS, PROJECTOR_GROUP

from .books import Sale, a_sale, commit, have_read_all, kill_redis

NOTICED_S = 4.0  # 2 s of patience, the watermark's cache, the relay's turn: what is not pushed until then is not pushed
PUSHED_WITHIN_S = 40.0  # returned from at once; only a machine that has other things to do needs it


@asynccontextmanager
async def a_relay(sale: Sale) -> AsyncIterator[None]:
    """A leader at work, whose groups have processed everything so far."""
    for group, topic in topics.CONSUMED_BY.items():
        await have_read_all(sale.settings, group, topic)
    stop = Stop()
    running = asyncio.create_task(relay.run(sale.settings, stop))
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait_for(running, 20)


@asynccontextmanager
async def a_tail(sale: Sale, topic: topics.Topic) -> AsyncIterator[Any]:
    """A reader of what is published from now on."""
    consumer = make_consumer(sale.settings, topic.name)
    await consumer.start()
    await consumer.seek_to_end()
    for tp in consumer.assignment():
        await consumer.position(tp)
    try:
        yield consumer
    finally:
        await consumer.stop()


async def next_of(tail: Any, key: str, within_s: float) -> Any | None:
    """The next record of a key; None when there is none in time."""
    try:
        async with asyncio.timeout(within_s):
            while True:
                record = await tail.getone()
                if record.key == key.encode():
                    return record
    except TimeoutError:
        return None


async def until(condition: Callable[[], Awaitable[bool]], within_s: float = 40.0) -> None:
    """Wait for something that only asking finds out."""
    async with asyncio.timeout(within_s):
        while not await condition():  # noqa: ASYNC110 - other processes set no event of ours
            await asyncio.sleep(0.05)


async def test_an_order_whose_gateway_died_before_publishing_is_published() -> None:
    async with a_sale(10) as sale, a_relay(sale), a_tail(sale, ORDERS) as tail:
        wish, held = await sale.reserve(1)
        record = await next_of(tail, wish.order_id, PUSHED_WITHIN_S)
        assert record is not None
        assert record.value == held.value


@pytest.mark.parametrize("hours", [-1, 1])
async def test_a_relay_whose_own_clock_is_wrong_pushes_what_is_stranded_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    monkeypatch.setattr(time, "time", lambda real=time.time: real() + hours * 3_600)
    monkeypatch.setattr(time, "time_ns", lambda real=time.time_ns: real() + hours * 3_600 * 10**9)
    async with a_sale(10) as sale, a_tail(sale, ORDERS) as tail, a_relay(sale):
        stranded, held = await sale.reserve(1)
        record = await next_of(tail, stranded.order_id, PUSHED_WITHIN_S)
        assert record is not None
        assert record.value == held.value
        await sale.place(stranded, held)
        await have_read_all(sale.settings, ORDER_STAGE_GROUP, ORDERS)
        waiting, held = await sale.reserve(2)
        await sale.publish(waiting, held)  # the order stage has not come so far
        assert await next_of(tail, waiting.order_id, PUSHED_WITHIN_S) is not None
        assert await next_of(tail, waiting.order_id, NOTICED_S) is None


async def test_looks_that_were_dated_before_redis_clock_was_set_back_are_due() -> None:
    async with a_sale(10) as sale, a_tail(sale, ORDERS) as tail, a_relay(sale):
        wish, _ = await sale.reserve(1)
        entry: Any = await sale.redis.hget(keys.held(sale.product), wish.order_id)
        an_hour_on = re.sub(rb"(?<= )1\d{12}(?= )", lambda at: b"%d" % (int(at[0]) + 3_600_000), entry, count=1)
        assert an_hour_on != entry
        await sale.redis.hset(keys.held(sale.product), wish.order_id, an_hour_on)
        await sale.redis.zincrby(keys.due(sale.product), 3_600_000, wish.order_id)
        assert await next_of(tail, wish.order_id, PUSHED_WITHIN_S) is not None


async def test_an_order_that_waits_in_a_backlog_is_not_published_again_until_the_backlog_is_past() -> None:
    async with a_sale(10) as sale, a_tail(sale, ORDERS) as tail, a_relay(sale):
        waiting, waiting_held = await sale.reserve(1)
        await sale.publish(waiting, waiting_held)  # the order stage does not run: lag from here on
        stranded, stranded_held = await sale.reserve(2)
        assert await next_of(tail, waiting.order_id, PUSHED_WITHIN_S) is not None
        assert await next_of(tail, waiting.order_id, 5.0) is None
        await sale.place(waiting, waiting_held)
        await have_read_all(sale.settings, ORDER_STAGE_GROUP, ORDERS)
        record = await next_of(tail, stranded.order_id, PUSHED_WITHIN_S)
        assert record is not None
        assert record.value == stranded_held.value


async def test_without_watermarks_the_same_backlog_is_published_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a relay that believes every stage to be at the present multiplies what is only waiting."""

    async def now(_: Watermarks, __: str) -> int:
        return since_boot_ms()

    monkeypatch.setattr(Watermarks, "watermark", now)
    async with a_sale(10) as sale, a_tail(sale, ORDERS) as tail, a_relay(sale):
        waiting, held = await sale.reserve(1)
        await sale.publish(waiting, held)
        assert await next_of(tail, waiting.order_id, PUSHED_WITHIN_S) is not None
        assert await next_of(tail, waiting.order_id, PUSHED_WITHIN_S) is not None


async def test_a_stored_order_without_its_payment_request_gets_one() -> None:
    async with a_sale(10) as sale, a_relay(sale), a_tail(sale, PAYMENTS) as tail:
        wish, held = await sale.reserve(1)
        await sale.place(wish, held)
        record = await next_of(tail, wish.order_id, PUSHED_WITHIN_S)
        assert record is not None
        assert isinstance(decode(record.value), PaymentRequested)


async def test_an_order_that_ended_in_postgres_alone_is_settled_and_announced() -> None:
    async with a_sale(10) as sale, a_relay(sale), a_tail(sale, ORDER_STATUS) as tail:
        wish, held = await sale.reserve(1, 2)
        await sale.place(wish, held)
        await sale.end_in_postgres(wish, Status.PAYMENT_FAILED)
        record = await next_of(tail, wish.order_id, PUSHED_WITHIN_S)
        assert record is not None
        event = decode(record.value)
        assert isinstance(event, OrderStatusChanged)
        assert (event.status, event.version, event.available, event.returned) == (Status.PAYMENT_FAILED, 2, 10, 2)
        assert await sale.units() == (10, 10, 0, 0)
        await sale.inventory.project([event])
        assert await sale.inventory.entries(sale.product, [wish.order_id]) == {}
        assert not await sale.redis.zcard(keys.due(sale.product))


async def test_an_order_that_ended_while_its_books_were_closed_is_announced_by_the_next_ones() -> None:
    async with a_sale(10) as sale, a_relay(sale), a_tail(sale, ORDER_STATUS) as tail:
        wish, held = await sale.reserve(1, 2)
        await sale.place(wish, held)
        await sale.wipe()
        await sale.end(wish, Status.PAYMENT_FAILED)  # which waits for nothing
        record = await next_of(tail, wish.order_id, 15.0)
        assert record is not None
        event = decode(record.value)
        assert isinstance(event, OrderStatusChanged)
        assert (event.status, event.epoch) == (Status.PAYMENT_FAILED, 2)
        assert await sale.units() == (10, 10, 0, 0)


async def test_a_product_with_much_to_announce_leaves_the_others_their_share_of_the_pushes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relay_decisions, "STRANDED_AFTER_MS", -60_000)
    async with a_sale(50) as busy, a_sale(10) as other:
        for user in range(1, 31):
            await an_ended_order(busy, user)
        waiting = await an_ended_order(other, 1)
        for sale in (busy, other):
            await sale.redis.zadd(keys.due(sale.product), dict.fromkeys(await entry_ids(sale), 0.0))
        for group, topic in topics.CONSUMED_BY.items():
            await have_read_all(busy.settings, group, topic)
        watermarks = Watermarks(busy.settings)
        pusher = Pusher(busy.inventory, busy.pool, busy.publisher, busy.desk, watermarks, Allowance(100))
        await pusher.run_once({busy.product: 1, other.product: 1})
        await watermarks.close()
        pushed = await busy.inventory.entries(busy.product, await entry_ids(busy))
        assert sum(entry.state is Entry.RELEASED for entry in pushed.values()) == 9
        assert (await other.inventory.entries(other.product, [waiting]))[waiting].state is Entry.RELEASED


async def an_ended_order(sale: Sale, user: int) -> OrderId:
    """Its row has ended, and nobody has settled it."""
    wish, held = await sale.reserve(user)
    await sale.place(wish, held)
    await sale.end_in_postgres(wish, Status.PAYMENT_FAILED)
    return wish.order_id


async def entry_ids(sale: Sale) -> list[OrderId]:
    ids: list[Any] = await sale.redis.hkeys(keys.held(sale.product))
    return [OrderId(id_.decode()) for id_ in ids]


async def test_a_parked_order_is_sent_again_once_its_books_are_in_force() -> None:
    async with a_sale(10) as sale, a_relay(sale), a_tail(sale, ORDERS) as tail:
        _, held = await sale.reserve(1)
        order_id = str(json.loads(held.value)["order_id"])
        async with books_lock(sale.settings, sale.product, wait=True):  # nobody else makes its books meanwhile
            await sale.inventory.close(sale.product)
            await sale.pool.execute(SQL.park_orders, sale.product, [held.value])
            assert await next_of(tail, order_id, 2.0) is None
        assert await next_of(tail, order_id, 15.0) is not None

        async def unparked() -> bool:
            return not await sale.pool.fetch(SQL.parked_orders, sale.product)

        await until(unparked)


async def test_an_order_with_an_unknown_payment_is_left_to_the_reconciler() -> None:
    async with a_sale(10) as sale, a_relay(sale), a_tail(sale, PAYMENTS) as tail:
        wish, held = await sale.reserve(1)
        await sale.place(wish, held)
        await sale.end_in_postgres(wish, Status.NEEDS_RECONCILIATION)
        assert await next_of(tail, wish.order_id, NOTICED_S) is None


async def test_after_a_restart_of_redis_the_product_is_sold_again_and_nothing_is_gone() -> None:
    async with a_sale(10) as sale, a_relay(sale):
        await sale.reserve(1, 2)
        await kill_redis()
        run = await sale.inventory.run()

        async def verified() -> bool:
            return (await sale.stock()).get("run") == run and await sale.redis.get(keys.BOOKS_RUN) == run.encode()

        await until(verified)
        assert await sale.units() == (10, 8, 2, 0)
        await sale.reserve(2, 1)


async def test_a_wiped_redis_gets_its_books_back() -> None:
    async with a_sale(10) as sale, a_relay(sale):
        wish, held = await sale.reserve(1, 2)
        await sale.publish(wish, held)
        await sale.wipe()
        await until(lambda: has_state(sale, "open"))
        assert await sale.units() == (10, 8, 2, 0)


async def test_a_closed_product_is_rebuilt_and_opened() -> None:
    async with a_sale(10) as sale, a_relay(sale):
        await sale.inventory.close(sale.product)
        await until(lambda: has_state(sale, "open"))
        assert (await sale.stock())["epoch"] == "2"


async def test_books_that_disagree_with_postgres_are_closed_and_rebuilt() -> None:
    """An entry says sold, the row says unpaid: no script can have done that."""
    async with a_sale(10) as sale, a_relay(sale):
        wish, held = await sale.reserve(1, 2)
        await sale.place(wish, held)
        await sale.inventory.settle([(sale.product, wish.order_id, Entry.SOLD)])

        async def rebuilt() -> bool:
            return (await sale.stock())["epoch"] == "2"

        await until(rebuilt)
        assert await sale.units() == (10, 8, 2, 0)


async def test_an_entry_that_nobody_would_look_at_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "MARK_INTERVAL_S", 0.5)
    async with a_sale(10) as sale, a_tail(sale, ORDERS) as tail:
        wish, _ = await sale.reserve(1)
        await sale.redis.delete(keys.due(sale.product))
        async with a_relay(sale):
            assert await next_of(tail, wish.order_id, PUSHED_WITHIN_S) is not None


async def test_in_a_sale_that_never_rests_the_mark_moves_up_to_the_first_end_that_is_not_announced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So the next rebuild does not announce again what is over. An order that awaits its payment holds up no mark."""
    monkeypatch.setattr(relay, "MARK_INTERVAL_S", 0.2)
    async with a_sale(10) as sale:
        waiting, waiting_held = await sale.reserve(1)
        await sale.place(waiting, waiting_held)
        owed, held = await sale.reserve(2)
        await sale.place(owed, held)
        await sale.end(owed, Status.CONFIRMED)
        ended_at = await sale.pool.fetchval("SELECT updated_at FROM orders WHERE id = $1", owed.order_id)
        async with a_relay(sale):

            async def up_to_the_end() -> bool:
                return bool(await verified_at(sale) == ended_at)

            await until(up_to_the_end)
            await asyncio.sleep(0.6)
            assert await verified_at(sale) == ended_at
            await sale.settle_and_project([owed.order_id])
            await sale.redis.hdel(keys.held(sale.product), owed.order_id)  # the projector has read its end
            await sale.redis.zrem(keys.due(sale.product), owed.order_id)

            async def later() -> bool:
                return bool(await verified_at(sale) > ended_at)

            await until(later)
            assert await sale.inventory.entries(sale.product, [waiting.order_id])


async def test_a_hundred_thousand_entries_are_looked_through_within_a_turn() -> None:
    async with a_sale(10) as sale:
        for chunk in range(100):
            entries: dict[Any, str] = {
                f"01a22ff4-db36-7006-8000-{chunk:04x}{n:08x}": "h 1 1 1 1 1 1 " + "x" * 300 for n in range(1_000)
            }
            await sale.redis.hset(keys.held(sale.product), mapping=entries)
        keeper = Keeper(sale.settings, sale.redis, sale.pool, sale.publisher, EventLog(sale.settings))
        async with asyncio.timeout(relay.ROUND_TIMEOUT_S):
            assert await keeper._owed_since(sale.product) is None


async def test_stock_changes_are_published_as_they_happen() -> None:
    async with a_sale(10) as sale, a_relay(sale), a_tail(sale, topics.STOCK_CHANGES) as tail:
        await until(lambda: has_state(sale, "open"))
        await sale.reserve(1, 3)

        async def told() -> bool:
            record = await next_of(tail, str(sale.product), 5.0)
            event = decode(record.value) if record else None
            return isinstance(event, StockChanged) and (event.version, event.available) == (1, 7)

        await until(told)


async def test_a_leader_whose_connection_is_lost_stops_and_another_leads() -> None:
    """For a moment there may be two: who has lost its connection must notice first."""
    async with a_sale(10) as sale:
        leading: list[int] = []
        times_led = 0
        stops = [Stop(), Stop()]

        async def work(member: int) -> None:
            nonlocal times_led
            leading.append(member)
            times_led += 1
            try:
                await asyncio.Event().wait()
            finally:
                leading.remove(member)

        members = [
            asyncio.create_task(lead(sale.settings, RELAY_LOCK, stop, partial(work, i))) for i, stop in enumerate(stops)
        ]
        await until(lambda: is_true(leading))
        await sale.pool.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
        await until(lambda: is_true(times_led == 2 and len(leading) == 1))
        for stop in stops:
            stop.set()
        await asyncio.gather(*members)
        assert leading == []


async def test_an_error_of_the_leaders_work_ends_the_process() -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    async with a_sale(1) as sale:
        with pytest.raises(WorkFailed) as raised:
            await lead(sale.settings, RELAY_LOCK, Stop(), fail)
        assert isinstance(raised.value.__cause__, ZeroDivisionError)


async def test_a_watermark_is_the_last_moment_before_the_first_record_that_is_not_processed() -> None:
    async with a_sale(10) as sale:
        watermarks = Watermarks(sale.settings)
        await have_read_all(sale.settings, ORDER_STAGE_GROUP, ORDERS)
        before = since_boot_ms()
        at_the_present = await watermarks.watermark(ORDER_STAGE_GROUP)
        assert at_the_present is not None
        assert before <= at_the_present <= since_boot_ms()
        offsets = Offsets(sale.settings)
        ends = await offsets.ends(ORDERS)
        await sale.publish(*await sale.reserve(1))
        appended = time.monotonic()
        await asyncio.sleep(1.0)
        await sale.publish(*await sale.reserve(2))
        assert sum((await watermarks.lag(ORDER_STAGE_GROUP)).values()) == 2
        assert await watermarks.watermark(ORDER_STAGE_GROUP) == at_the_present
        delay_s = await watermarks.delay_s(ORDER_STAGE_GROUP)
        assert delay_s == pytest.approx(time.monotonic() - appended, abs=0.5)
        await have_read_all(sale.settings, ORDER_STAGE_GROUP, ORDERS)
        assert await watermarks.delay_s(ORDER_STAGE_GROUP) == 0
        await commit(sale.settings, ORDER_STAGE_GROUP, ORDERS, {p: end + 10**6 for p, end in ends.items()})
        assert sum((await watermarks.lag(ORDER_STAGE_GROUP)).values()) > 0  # a position of another log counts as none
        await watermarks.close()
        await offsets.close()


@pytest.mark.parametrize("group", [PAYMENT_STAGE_GROUP, PROJECTOR_GROUP])
async def test_a_group_that_never_committed_is_at_the_beginning(group: str) -> None:
    async with a_sale(1) as sale:
        watermarks = Watermarks(sale.settings)
        lag = await watermarks.lag(group)
        assert set(lag) == set(range(6))
        await watermarks.close()


async def test_a_log_that_was_wiped_gets_its_topics_and_every_product_a_new_epoch() -> None:
    async with a_sale(10) as sale:
        log = EventLog(sale.settings)
        opened_from = int((await sale.stock())["opened_from"])
        assert await log.has_opening(sale.product, 1, opened_from)
        assert not await log.has_opening(sale.product, 2, opened_from)
        assert not await log.was_wiped()
        async with a_relay(sale):
            wish, held = await sale.reserve(1, 2)
            await sale.place(wish, held)
            await asyncio.sleep(1.5)
            admin = AIOKafkaAdminClient(bootstrap_servers=sale.settings.kafka_bootstrap_servers)
            await admin.start()
            await admin.delete_topics([topic.name for topic in topics.ALL])
            await admin.close()

            async def announced() -> bool:
                stock = await sale.stock()
                return stock["epoch"] != "1" and stock["state"] == "open"

            await until(announced, 90)
            stock = await sale.stock()
            assert await log.has_opening(sale.product, int(stock["epoch"]), int(stock["opened_from"]))
        assert await sale.units() == (10, 8, 2, 0)
        await log.close()


async def has_state(sale: Sale, state: str) -> bool:
    stock = await sale.stock()
    return stock.get("state") == state and int(stock["epoch"]) == await sale.pool.fetchval(
        "SELECT epoch FROM products WHERE id = $1", sale.product
    )


async def verified_at(sale: Sale) -> Any:
    row = await sale.pool.fetchrow(SQL.product, sale.product)
    assert row is not None
    return row["verified_at"]


async def is_true(value: object) -> bool:
    return bool(value)
