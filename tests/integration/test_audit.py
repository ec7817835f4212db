"""The audit on real servers: a right sale balances; each book, corrupted where it lies, is named."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from consumers.analysis.proof import prove
from consumers.audit.audit import audit
from consumers.audit.balance import AuditReport
from consumers.incidents.incidents import acknowledge
from infra.lifecycle import Stop
from infra.local.charge_ledger import CAPTURE, ChargeLedger, LedgerEntry
from infra.local.payment_gateway import serve
from infra.settings import Settings
from infra.supervision.ports import free_ports
from sale.books import keys
from sale.books.inventory import Held, Reservation, Settlement
from sale.operations.operations import OperationRefused, Stores
from sale.orders import read_rows, terminal_event
from sale.tables.queries import SQL
from schemas.codec import encode
from schemas.events import OrderStatusChanged
from schemas.ids import OrderId, new_order_id
from schemas.money import to_decimal
from schemas.order_state import Status, outcome_of
from schemas.topics import CONSUMED_BY, ORDER_STATUS, ORDERS

from .books import PRICE_CENTS, Sale, a_sale, have_read_all


@dataclass(frozen=True, slots=True)
class Ended:
    """A sale in which three orders have been confirmed and one declined, told to the very end."""

    sale: Sale
    settings: Settings
    ledger: Path
    orders: list[tuple[Reservation, Held]]
    ends: list[OrderStatusChanged]

    @property
    def first(self) -> OrderId:
        return self.orders[0][0].order_id

    async def audit(self, wait_s: float = 0.0, *, read: bool = True) -> AuditReport:
        if read:
            for group, topic in CONSUMED_BY.items():
                await have_read_all(self.settings, group, topic)
        return await audit(self.settings, self.sale.product, wait_s)


@asynccontextmanager
async def an_ended_sale(folder: Path) -> AsyncIterator[Ended]:
    stop = Stop()
    path, port = folder / "ledger.jsonl", free_ports(1)[0]
    async with a_sale(10) as sale:
        charged = []
        orders = []
        ends = []
        for user, status in enumerate([Status.CONFIRMED] * 3 + [Status.PAYMENT_FAILED], start=1):
            wish, held = await sale.reserve(user, 2, key=f"key {user}")
            await sale.publish(wish, held)
            await sale.place(wish, held)
            if status is Status.CONFIRMED:
                charged.append(capture_of(wish))
            ends.append(await end(sale, wish, status))
            orders.append((wish, held))
        path.write_bytes(b"".join(charged))
        provider = asyncio.create_task(serve(port, path, stop))
        try:
            await answering(port)
            reached = sale.settings.model_copy(update={"payment_gateway_url": f"http://127.0.0.1:{port}"})
            yield Ended(sale, reached, path, orders, ends)
        finally:
            stop.set()
            await provider


async def end(sale: Sale, wish: Reservation, status: Status) -> OrderStatusChanged:
    """Settled in Postgres and Redis, announced, projected."""
    await sale.end(wish, status)
    [settlement] = await sale.inventory.settle([(wish.product_id, wish.order_id, outcome_of(status))])
    row = (await read_rows(sale.pool, [wish.order_id]))[wish.order_id]
    event = terminal_event(row, settlement)
    await sale.inventory.project([event])
    return event


def capture_of(wish: Reservation, cents: int | None = None) -> bytes:
    amount = to_decimal(wish.quantity * PRICE_CENTS if cents is None else cents)
    entry = LedgerEntry(CAPTURE, wish.order_id, wish.order_id, f"ch_{wish.order_id}", amount, "USD", 1)
    return msgspec.json.encode(entry) + b"\n"


async def answering(port: int) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return


async def test_a_right_sale_balances(tmp_path: Path) -> None:
    async with an_ended_sale(tmp_path) as ended:
        report = await ended.audit()
        assert report.problems == []
        assert report.ok
        [product] = report.products
        assert (product.redis.available, product.redis.held, product.redis.sold) == (4, 0, 6)
        assert product.postgres["confirmed"].units == 6
        assert product.postgres["payment_failed"].orders == 1
        assert (product.log.accepted, product.log.confirmed, product.log.released) == (8, 6, 2)
        assert (product.log.versions, product.log.gaps, product.log.repeats) == (8, 0, 0)
        assert (product.charges.captured, product.charges.double) == (6, 0)


async def test_a_rebuild_in_the_middle_balances_too(tmp_path: Path) -> None:
    async with an_ended_sale(tmp_path) as ended:
        sale = ended.sale
        wish, held = await sale.reserve(9, 1)
        await sale.publish(wish, held)
        await sale.place(wish, held)
        await sale.rebuild()
        for order, status in [(o, Status.CONFIRMED) for o, _ in ended.orders[:3]] + [
            (ended.orders[3][0], Status.PAYMENT_FAILED),
            (wish, Status.CONFIRMED),
        ]:
            await end(sale, order, status)  # what has just ended is announced again, under the new epoch
        with ended.ledger.open("ab") as ledger:
            ledger.write(capture_of(wish))
        report = await ended.audit()
        assert report.problems == []
        assert report.products[0].log.epochs == 2


async def redis_counts_wrong(ended: Ended) -> None:
    await ended.sale.redis.hincrby(keys.stock(ended.sale.product), "sold", 1)


async def redis_keeps_an_entry(ended: Ended) -> None:
    await ended.sale.redis.hset(keys.held(ended.sale.product), ended.first, "h 1 1 8 2 1 1 {")


async def redis_spends_a_version_nobody_hears_of(ended: Ended) -> None:
    await ended.sale.redis.hincrby(keys.stock(ended.sale.product), "version", 1)


async def redis_is_closed(ended: Ended) -> None:
    await ended.sale.inventory.close(ended.sale.product)


async def redis_miscounts_a_buyer(ended: Ended) -> None:
    await ended.sale.redis.hincrby(keys.buyers(ended.sale.product), "1", 1)


async def postgres_changes_a_status(ended: Ended) -> None:
    await ended.sale.pool.execute("UPDATE orders SET status = 'failed' WHERE id = $1", ended.first)


async def postgres_changes_a_quantity(ended: Ended) -> None:
    await ended.sale.pool.execute("UPDATE orders SET quantity = 1 WHERE id = $1", ended.first)


async def postgres_loses_a_row(ended: Ended) -> None:
    await ended.sale.pool.execute("DELETE FROM orders WHERE id = $1", ended.first)


async def postgres_miscounts(ended: Ended) -> None:
    await ended.sale.pool.execute("UPDATE products SET taken = taken - 1 WHERE id = $1", ended.sale.product)


async def postgres_takes_one_key_twice(ended: Ended) -> None:
    await ended.sale.pool.execute(
        "UPDATE orders SET user_id = 1, key_hash = (SELECT key_hash FROM orders WHERE id = $1) WHERE id = $2",
        ended.first,
        ended.orders[1][0].order_id,
    )


async def the_provider_captures_twice(ended: Ended) -> None:
    with ended.ledger.open("ab") as ledger:
        ledger.write(capture_of(ended.orders[0][0]))


async def the_provider_captures_another_amount(ended: Ended) -> None:
    lines = ended.ledger.read_bytes().splitlines(keepends=True)
    ended.ledger.write_bytes(b"".join([capture_of(ended.orders[0][0], cents=1), *lines[1:]]))


async def the_provider_forgets_a_capture(ended: Ended) -> None:
    lines = ended.ledger.read_bytes().splitlines(keepends=True)
    ended.ledger.write_bytes(b"".join(lines[1:]))


async def the_provider_captures_a_declined_order(ended: Ended) -> None:
    with ended.ledger.open("ab") as ledger:
        ledger.write(capture_of(ended.orders[3][0]))


async def the_log_uses_a_version_twice(ended: Ended) -> None:
    wish, held = ended.orders[0]
    other = new_order_id()
    value = held.value.replace(wish.order_id.encode(), other.encode())
    await ended.sale.publisher.publish(ORDERS, other, value)


async def the_log_ends_an_order_both_ways(ended: Ended) -> None:
    event = msgspec.structs.replace(ended.ends[0], status=Status.PAYMENT_FAILED)
    await ended.sale.publisher.publish(ORDER_STATUS, event.order_id, encode(event))


async def the_log_never_hears_of_an_end(ended: Ended) -> None:
    """The held entry was deleted before its news was acknowledged."""
    sale = ended.sale
    wish, held = await sale.reserve(7, 1)
    await sale.publish(wish, held)
    await sale.place(wish, held)
    await sale.end_in_postgres(wish, Status.PAYMENT_FAILED)
    await sale.inventory.settle([(wish.product_id, wish.order_id, outcome_of(Status.PAYMENT_FAILED))])
    await sale.redis.hdel(keys.held(sale.product), wish.order_id)


async def the_log_never_hears_of_an_order(ended: Ended) -> None:
    sale = ended.sale
    wish, held = await sale.reserve(7, 1)
    await sale.place(wish, held)
    await end(sale, wish, Status.PAYMENT_FAILED)


async def an_order_fails_although_its_units_are_held(ended: Ended) -> None:
    """As a stage did that took a read-only database for the record's fault: every book balances afterwards."""
    sale = ended.sale
    wish, held = await sale.reserve(7, 1)
    await sale.publish(wish, held)
    await fail(sale, wish, held, "postgres: cannot execute INSERT in a read-only transaction")
    [settlement] = await sale.inventory.settle([(wish.product_id, wish.order_id, outcome_of(Status.FAILED))])
    await tell_failed(sale, wish, settlement)


async def an_order_is_taken_for_lost_although_there_are_units(ended: Ended) -> None:
    """Failed when the books had been made anew, in which four units are free."""
    sale = ended.sale
    wish, held = await sale.reserve(7, 1)
    await sale.publish(wish, held)
    await fail(sale, wish, held, "its reservation was lost with the books")
    await sale.rebuild()
    ids = [order.order_id for order, _ in ended.orders]
    await sale.settle_and_project(ids)
    [settlement] = await sale.inventory.settle([(wish.product_id, wish.order_id, outcome_of(Status.FAILED))])
    await tell_failed(sale, wish, settlement)


async def fail(sale: Sale, wish: Reservation, held: Held, reason: str) -> None:
    await sale.pool.execute(
        SQL.fail_order, wish.order_id, wish.product_id, wish.user_id, wish.quantity, reason, held.epoch, held.version,
        held.available, None, held.at_ms, False,
    )  # fmt: skip


async def tell_failed(sale: Sale, wish: Reservation, settlement: Settlement | None) -> None:
    row = (await read_rows(sale.pool, [wish.order_id]))[wish.order_id]
    event = terminal_event(row, settlement)
    await sale.publisher.publish(ORDER_STATUS, event.order_id, encode(event))
    await sale.inventory.project([event])


CORRUPTIONS: list[tuple[Callable[[Ended], Awaitable[None]], str]] = [
    (redis_counts_wrong, "Redis does not add up"),
    (redis_keeps_an_entry, "entry left in Redis"),
    (redis_spends_a_version_nobody_hears_of, "version missing: epoch 1 version 9"),
    (redis_is_closed, "books not in force"),
    (redis_miscounts_a_buyer, "units counted for a buyer"),
    (postgres_changes_a_status, "statuses differ"),
    (postgres_changes_a_quantity, "row unlike its order.placed"),
    (postgres_loses_a_row, "in the log, not in Postgres"),
    (postgres_miscounts, "Postgres counts as taken"),
    (postgres_takes_one_key_twice, "one key, two orders"),
    (the_provider_captures_twice, "charged twice"),
    (the_provider_captures_another_amount, "wrong amount charged"),
    (the_provider_forgets_a_capture, "confirmed without a charge"),
    (the_provider_captures_a_declined_order, "charged, not sold"),
    (the_log_uses_a_version_twice, "version used twice"),
    (the_log_ends_an_order_both_ways, "order with two ends"),
    (the_log_never_hears_of_an_end, "accepted without an end"),
    (an_order_fails_although_its_units_are_held, "failed although there were units"),
    (an_order_is_taken_for_lost_although_there_are_units, "failed although there were units"),
    (the_log_never_hears_of_an_order, "in Postgres, not in the log"),
]


@pytest.mark.parametrize(("corrupt", "named"), CORRUPTIONS, ids=[corrupt.__name__ for corrupt, _ in CORRUPTIONS])
async def test_a_corrupted_book_is_named(
    corrupt: Callable[[Ended], Awaitable[None]], named: str, tmp_path: Path
) -> None:
    async with an_ended_sale(tmp_path) as ended:
        await corrupt(ended)
        report = await ended.audit()
        assert not report.ok
        assert any(named in problem for problem in report.problems), report.problems


async def test_what_is_still_under_way_is_named_at_the_deadline(tmp_path: Path) -> None:
    async with an_ended_sale(tmp_path) as ended:
        wish, held = await ended.sale.reserve(8, 1)
        await ended.sale.publish(wish, held)
        await ended.sale.place(wish, held)
        report = await ended.audit(wait_s=0.5, read=False)
        told = "\n".join(report.problems)
        assert "group order-stage has" in told
        assert "1 entries in Redis" in told
        assert "1 orders are awaiting_payment" in told


async def test_the_audit_waits_for_quiet(tmp_path: Path) -> None:
    async with an_ended_sale(tmp_path) as ended:
        sale = ended.sale
        wish, held = await sale.reserve(8, 1)
        await sale.publish(wish, held)
        await sale.place(wish, held)

        async def end_later() -> None:
            await asyncio.sleep(1.0)
            await end(sale, wish, Status.PAYMENT_FAILED)
            for group, topic in CONSUMED_BY.items():
                await have_read_all(ended.settings, group, topic)

        later = asyncio.create_task(end_later())
        report = await ended.audit(wait_s=20.0, read=False)
        await later
        assert report.problems == []


def test_the_ledger_file_is_the_mock_gateways_own(tmp_path: Path) -> None:
    """The lines this module writes are read by the real ledger."""
    wish = Reservation(new_order_id(), 1, 1, 2, PRICE_CENTS, "USD")  # type: ignore[arg-type]  # plain numbers do
    (tmp_path / "ledger.jsonl").write_bytes(capture_of(wish))
    ledger = ChargeLedger(tmp_path / "ledger.jsonl")
    assert ledger.captures == 1
    ledger.close()


async def test_an_incident_that_an_operator_acknowledges_is_on_the_log_and_fails_no_more(tmp_path: Path) -> None:
    """A version that two orders have used can be undone by nobody; the next finding fails again."""
    async with an_ended_sale(tmp_path) as ended:
        sale = ended.sale
        stores = Stores(ended.settings, sale.redis, sale.pool, sale.publisher)
        assert (await ended.audit()).ok
        with pytest.raises(OperationRefused, match="nothing to acknowledge"):
            await acknowledge(stores, sale.product, "Ned", "why not")
        await use_a_version_again(ended, 0)
        found = (await ended.audit()).problems
        assert await acknowledge(stores, sale.product, "Ned", "redis went back")
        report = await ended.audit()
        assert report.ok, report.problems
        assert [done.text for done in report.acknowledged] == found
        assert {(done.who, done.why) for done in report.acknowledged} == {("Ned", "redis went back")}
        assert (await prove(ended.settings, sale.product)).proved
        assert not await sale.pool.fetch(SQL.unpublished_sale_actions, 10)
        await use_a_version_again(ended, 1)
        assert not (await ended.audit()).ok


async def use_a_version_again(ended: Ended, which: int) -> None:
    """As books that went back would have it."""
    wish, held = ended.orders[which]
    other = held.value.replace(wish.order_id.encode(), new_order_id().encode())
    await ended.sale.publisher.publish(ORDERS, wish.order_id, other)
    for group, topic in CONSUMED_BY.items():
        await have_read_all(ended.settings, group, topic)
