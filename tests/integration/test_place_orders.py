"""place_orders and settle_orders on a real Postgres: the database refuses the unit too many, whoever lied, and counts what lives."""

import asyncio
import random
from collections import Counter
from typing import Any

import asyncpg
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from infra.postgres.pool import RECORDS_FAULT, connect_postgres
from infra.settings import Settings
from sale.orders import REFUSED_BY_DATABASE
from sale.tables.queries import SQL
from schemas.ids import OrderId, ProductId, new_order_id
from schemas.money import MOST_CENTS
from schemas.order_state import TERMINAL, UNPAID, Status
from tests.rows import Placed, create_product, place, placed, settle, taken

PRODUCT = ProductId(1)
OTHER = ProductId(2)


async def test_an_accepted_order_becomes_a_row_that_awaits_payment_at_the_catalogue_price(pool: asyncpg.Pool) -> None:
    """The price and currency charged are the product's, whatever a record says."""
    await create_product(pool, PRODUCT, 10)
    order = placed(PRODUCT, 1, quantity=3)
    assert await place(pool, [order]) == {order.order_id: ("new", Status.AWAITING_PAYMENT)}
    row = await pool.fetchrow("SELECT * FROM orders WHERE id = $1", order.order_id)
    assert row is not None
    assert (row["unit_price_cents"], row["currency"], row["quantity"]) == (99_999, "USD", 3)
    assert await taken(pool, PRODUCT) == 3


async def test_the_database_refuses_the_unit_too_many_whatever_redis_gave_out(pool: asyncpg.Pool) -> None:
    """Promise 1's last line: 1,100 reservations of 1,000 units are 1,000 orders and 100 failed ones, in version order."""
    await create_product(pool, PRODUCT, 1_000)
    orders = [placed(PRODUCT, version) for version in range(1, 1_101)]
    outcomes: dict[OrderId, Any] = {}
    shuffled = random.Random(1).sample(orders, len(orders))
    in_order_of_batches = sorted(shuffled[:600], key=lambda o: random.random())
    for batch in (in_order_of_batches, shuffled[600:]):
        outcomes |= await place(pool, batch)
    statuses = Counter(status for _, status in outcomes.values())
    assert statuses == {Status.AWAITING_PAYMENT: 1_000, Status.FAILED: 100}
    assert await pool.fetchval("SELECT count(*) FROM orders WHERE reason = $1", REFUSED_BY_DATABASE) == 100
    assert await taken(pool, PRODUCT) == 1_000


async def test_an_order_whose_total_is_no_amount_has_no_row_and_so_is_never_charged(pool: asyncpg.Pool) -> None:
    """Of two units at half of the largest amount and a cent, two are too many; the gateway refuses them before."""
    await create_product(pool, PRODUCT, 10)
    await pool.execute("UPDATE products SET price_cents = $1 WHERE id = $2", MOST_CENTS // 2 + 1, PRODUCT)
    with pytest.raises(RECORDS_FAULT):
        await place(pool, [placed(PRODUCT, 1, quantity=2)])
    assert (await place(pool, [placed(PRODUCT, 2, quantity=1)])).popitem()[1] == ("new", Status.AWAITING_PAYMENT)
    assert await taken(pool, PRODUCT) == 1


async def test_within_a_batch_lower_versions_are_served_first(pool: asyncpg.Pool) -> None:
    """The order in which records were read does not decide who gets the last unit; the reservation's version does."""
    await create_product(pool, PRODUCT, 3)
    orders = [placed(PRODUCT, version) for version in (5, 2, 4, 1, 3)]
    outcomes = await place(pool, orders)
    refused = {order.version for order in orders if outcomes[order.order_id][1] is Status.FAILED}
    assert refused == {4, 5}


async def test_an_order_too_big_for_the_rest_leaves_room_for_a_smaller_one(pool: asyncpg.Pool) -> None:
    """Orders are decided one by one: the refusal of five units does not refuse the one unit after it."""
    await create_product(pool, PRODUCT, 4)
    orders = [placed(PRODUCT, 1, 3), placed(PRODUCT, 2, 5), placed(PRODUCT, 3, 1)]
    outcomes = await place(pool, orders)
    assert [outcomes[o.order_id][1] for o in orders] == [
        Status.AWAITING_PAYMENT,
        Status.FAILED,
        Status.AWAITING_PAYMENT,
    ]
    assert await taken(pool, PRODUCT) == 4


async def test_copies_within_a_batch_and_across_batches_are_one_row(pool: asyncpg.Pool) -> None:
    """A record read twice, in one batch or later, is counted once; the second time the row is `known` as it stands."""
    await create_product(pool, PRODUCT, 10)
    order = placed(PRODUCT, 1, quantity=4)
    assert await place(pool, [order, order, order]) == {order.order_id: ("new", Status.AWAITING_PAYMENT)}
    assert await taken(pool, PRODUCT) == 4
    await settle(pool, [(order.order_id, Status.CONFIRMED)])
    assert await place(pool, [order, order]) == {order.order_id: ("known", Status.CONFIRMED)}
    assert await taken(pool, PRODUCT) == 4


async def test_copies_of_an_order_from_two_books_in_one_batch_are_one_order_that_is_not_refused(
    pool: asyncpg.Pool,
) -> None:
    """A rebuild gives a surviving order's copy a new epoch; the copies do not compete for the last unit."""
    await create_product(pool, PRODUCT, 1)
    older = placed(PRODUCT, 1, vouched=True)
    newer = older.but(epoch=2)
    for batch in ([newer, older], [older, newer]):
        await pool.execute("DELETE FROM orders")
        await pool.execute("UPDATE products SET taken = 0")
        assert await place(pool, batch) == {older.order_id: ("new", Status.AWAITING_PAYMENT)}
        assert await taken(pool, PRODUCT) == 1


async def test_a_refused_order_stays_refused_when_its_record_is_read_again(pool: asyncpg.Pool) -> None:
    """Units that come back later do not revive a failed order: its end may have been told."""
    await create_product(pool, PRODUCT, 1)
    first, second = placed(PRODUCT, 1), placed(PRODUCT, 2)
    await place(pool, [first, second])
    await settle(pool, [(first.order_id, Status.PAYMENT_FAILED)])
    assert await place(pool, [second]) == {second.order_id: ("known", Status.FAILED)}
    assert await taken(pool, PRODUCT) == 0


async def test_records_of_replaced_books_are_stale_unless_an_entry_vouches_for_them(pool: asyncpg.Pool) -> None:
    """R1: without an entry an older epoch's record inserts nothing; vouched for, it is an order like any other."""
    await create_product(pool, PRODUCT, 10, epoch=3)
    lost, kept, current = placed(PRODUCT, 1, epoch=2), placed(PRODUCT, 2, epoch=2, vouched=True), placed(PRODUCT, 1)
    outcomes = await place(pool, [lost, kept, current.but(epoch=3)])
    assert outcomes == {
        lost.order_id: ("stale", None),
        kept.order_id: ("new", Status.AWAITING_PAYMENT),
        current.order_id: ("new", Status.AWAITING_PAYMENT),
    }
    assert await taken(pool, PRODUCT) == 2


async def test_an_unknown_product_is_named_and_stops_nobody_else(pool: asyncpg.Pool) -> None:
    """The orders beside it in the batch are placed."""
    await create_product(pool, PRODUCT, 10)
    lost, good = placed(ProductId(404), 1), placed(PRODUCT, 1)
    assert await place(pool, [lost, good]) == {
        lost.order_id: ("no_product", None),
        good.order_id: ("new", Status.AWAITING_PAYMENT),
    }


async def test_concurrent_batches_over_the_same_products_neither_deadlock_nor_oversell(pool: asyncpg.Pool) -> None:
    """Twelve members write batches that overlap in products and orders, in opposite orders; declines run beside them."""
    await create_product(pool, PRODUCT, 300)
    await create_product(pool, OTHER, 300)
    orders = [placed(product, version) for version in range(1, 401) for product in (PRODUCT, OTHER)]
    rng = random.Random(7)
    ended: set[OrderId] = set()

    async def member(number: int) -> None:
        for _ in range(6):
            batch = rng.sample(orders, 120)
            batch.sort(key=lambda o: (o.product_id, o.version), reverse=bool(number % 2))
            await place(pool, batch)
            ids = [o.order_id for o in rng.sample(batch, 20)]
            rng.shuffle(ids)
            ended.update(ids)
            await settle(pool, [(id_, rng.choice((Status.CONFIRMED, Status.PAYMENT_FAILED))) for id_ in ids])

    # DeadlockDetectedError or a lock timeout would end a member, and the test with it.
    await asyncio.gather(*map(member, range(10)))
    assert await taken(pool, PRODUCT) > 0
    assert await taken(pool, OTHER) > 0
    unended = await pool.fetchval(
        "SELECT count(*) FROM orders WHERE id = ANY ($1) AND status = 'awaiting_payment'", ended
    )
    assert unended == 0


async def test_a_terminal_row_is_never_overwritten(pool: asyncpg.Pool) -> None:
    """The first definite answer stands, with its charge; a later one gets the row as it is and moves no units."""
    await create_product(pool, PRODUCT, 10)
    for first in sorted(TERMINAL - {Status.FAILED}):
        order = placed(PRODUCT, 1, quantity=2)
        await place(pool, [order])
        before = await taken(pool, PRODUCT)
        await settle(pool, [(order.order_id, first)], charge_id="first")
        after = await taken(pool, PRODUCT)
        assert before - after == (0 if first is Status.CONFIRMED else 2)
        for later in sorted(TERMINAL | {Status.NEEDS_RECONCILIATION}):
            rows = await settle(pool, [(order.order_id, later)], charge_id="later")
            assert rows[order.order_id].status is first
            assert await taken(pool, PRODUCT) == after
        assert await pool.fetchval("SELECT charge_id FROM orders WHERE id = $1", order.order_id) == "first"


@pytest.mark.parametrize("late", [Status.CONFIRMED, Status.PAYMENT_FAILED])
async def test_a_late_answer_lands_after_needs_reconciliation(pool: asyncpg.Pool, late: Status) -> None:
    """Promise 3: unknown stays open until the provider is definite; the first attempt's time is kept."""
    await create_product(pool, PRODUCT, 10)
    order = placed(PRODUCT, 1)
    await place(pool, [order])
    rows = await settle(pool, [(order.order_id, Status.NEEDS_RECONCILIATION)], at_ms=5_000)
    assert rows[order.order_id].status is Status.NEEDS_RECONCILIATION
    assert await taken(pool, PRODUCT) == 1  # counts as live
    rows = await settle(pool, [(order.order_id, late)], at_ms=9_000)
    row = rows[order.order_id]
    assert (row.status, row.charge_started_at_ms, row.charge_answered_at_ms) == (late, 5_000, 9_000)
    assert await taken(pool, PRODUCT) == (1 if late is Status.CONFIRMED else 0)


async def test_two_answers_for_one_order_in_a_batch_count_once(pool: asyncpg.Pool) -> None:
    """Copies of a request that finish together settle one order, once."""
    await create_product(pool, PRODUCT, 10)
    order = placed(PRODUCT, 1, quantity=3)
    await place(pool, [order])
    await settle(pool, [(order.order_id, Status.PAYMENT_FAILED)] * 3)
    assert await taken(pool, PRODUCT) == 0


async def test_an_order_that_no_books_vouch_for_is_failed_once_and_uncharged(pool: asyncpg.Pool) -> None:
    """fail_order takes no unit, and does nothing where a row exists."""
    await create_product(pool, PRODUCT, 10)
    live, lost = placed(PRODUCT, 1), placed(PRODUCT, 2)
    await place(pool, [live])
    for order in (live, lost, lost):
        await pool.execute(
            SQL.fail_order, order.order_id, PRODUCT, 1, 1, "lost", 1, order.version, 0, None, 1_000, False
        )
    statuses = {row["id"]: row["status"] for row in await pool.fetch("SELECT id::text, status FROM orders")}
    assert statuses == {live.order_id: Status.AWAITING_PAYMENT, lost.order_id: Status.FAILED}
    assert await taken(pool, PRODUCT) == 1


async def test_a_batch_finds_its_orders_by_id_however_many_others_await_their_payment(pool: asyncpg.Pool) -> None:
    """Plans that a session made while the table was empty are its plans in a backlog of a million: they must not read it."""
    await create_product(pool, PRODUCT, 10_000)
    for version in range(1, 11):  # from the sixth call on a session keeps one plan
        order = placed(PRODUCT, version)
        await place(pool, [order])
        await settle(pool, [(order.order_id, Status.CONFIRMED)])
    backlog = [placed(PRODUCT, version) for version in range(11, 1_011)]
    await place(pool, backlog)
    before = await _whole_reads(pool)
    await place(pool, [placed(PRODUCT, 2_000), backlog[0]])
    await settle(pool, [(order.order_id, Status.CONFIRMED) for order in backlog[:3]])
    assert await _whole_reads(pool) == before


async def _whole_reads(pool: asyncpg.Pool) -> tuple[int, int]:
    """Scans of the table, and of the index over all that await payment."""
    await pool.execute("SELECT pg_stat_force_next_flush()")
    seq = await pool.fetchval("SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'orders'")
    unpaid = await pool.fetchval("SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'orders_unpaid'")
    return seq, unpaid


Step = tuple[str, list[int], list[Status]]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["place", "settle"]),
        st.lists(st.integers(0, 9), min_size=1, max_size=8),
        st.lists(st.sampled_from(sorted((TERMINAL | UNPAID) - {Status.AWAITING_PAYMENT})), min_size=8, max_size=8),
    ),
    min_size=1,
    max_size=12,
)


def test_taken_is_the_units_of_live_orders_after_any_history(settings: Settings) -> None:
    """Promise 1 and 4 in the database: after every batch of any history the counter is the sum and never above the stock."""
    with asyncio.Runner() as runner:
        pool = runner.run(connect_postgres(settings))
        runner.run(create_product(pool, PRODUCT, 12))

        @hypothesis_settings(max_examples=60)
        @given(quantities=st.lists(st.integers(1, 5), min_size=10, max_size=10), steps=STEPS)
        def histories(quantities: list[int], steps: list[Step]) -> None:
            runner.run(_live_through(pool, quantities, steps))

        try:
            histories()
        finally:
            runner.run(pool.close())


async def _live_through(pool: asyncpg.Pool, quantities: list[int], steps: list[Step]) -> None:
    await pool.execute("TRUNCATE orders")
    await pool.execute("UPDATE products SET taken = 0")
    orders = [Placed(new_order_id(), PRODUCT, v, q) for v, q in enumerate(quantities, 1)]
    ends: dict[OrderId, Status] = {}
    for kind, picks, statuses in steps:
        batch = [orders[i] for i in picks]
        if kind == "place":
            outcomes = await place(pool, batch)
            seen = {id_: status for id_, (_, status) in outcomes.items()}
        else:
            verdicts = list({order.order_id: status for order, status in zip(batch, statuses, strict=False)}.items())
            seen = {id_: row.status for id_, row in (await settle(pool, verdicts)).items()}
        await taken(pool, PRODUCT)
        for id_, status in seen.items():
            if status in TERMINAL:
                assert ends.setdefault(id_, status) is status, "one terminal status an order, for ever"
