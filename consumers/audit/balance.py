"""Compares all books of a sale and reports where they differ. Pure: the readers are elsewhere.

It checks the invariants I1 to I9 of docs/architecture.md, and I11 if there is a client log. The system must be quiet:
everything still under way is a problem. `thrones audit`, the fault campaign and the simulation share this module.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from itertools import pairwise

import msgspec
from msgspec import UNSET

from sale.books.books import RedisBook
from sale.books.inventory import KEY_LIFETIME_MS
from sale.orders import REFUSED_BY_DATABASE
from schemas.money import to_decimal
from schemas.order_state import RANK, STORED, TERMINAL, Entry, Status

from .facts import AuditedOrder, Capture, ClientAnswers, PostgresBook, ProductFacts
from .findings import Findings
from .log_book import LogBook, Totals

REBUILD_MS = 300_000  # a rebuild takes no longer; it may still have counted units that were returned meanwhile
GIVEN_BACK = frozenset({Status.FAILED, Status.PAYMENT_FAILED})
STATUSES = sorted(STORED, key=lambda status: (RANK[status], status))


class RedisUnits(msgspec.Struct, frozen=True):
    available: int = 0
    held: int = 0
    sold: int = 0


class OrderUnits(msgspec.Struct, frozen=True):
    orders: int = 0
    units: int = 0


class LogUnits(msgspec.Struct, frozen=True):
    accepted: int
    confirmed: int
    released: int
    epochs: int
    versions: int
    gaps: int
    repeats: int


class ChargedUnits(msgspec.Struct, frozen=True):
    captured: int = 0
    double: int = 0


class ProductReport(msgspec.Struct, frozen=True):
    """All in units, except members named orders; epochs, versions, gaps and repeats are counts."""

    product_id: int
    initial: int
    redis: RedisUnits
    postgres: dict[str, OrderUnits]
    log: LogUnits
    charges: ChargedUnits
    oversold: int
    lost: int
    stranded: int


class AcknowledgedFinding(msgspec.Struct, frozen=True):
    """A finding that an operator has acknowledged: it is shown, but is no failure. `when` is ISO 8601."""

    text: str
    who: str
    why: str
    when: str


def split_acknowledged(problems: Sequence[str], logs: Sequence[LogBook]) -> tuple[list[str], list[AcknowledgedFinding]]:
    """Separates problems from findings that an operator has acknowledged; the exact text decides."""
    done = {text: taken for log in logs for text, taken in log.acknowledged.items()}
    noted = [
        AcknowledgedFinding(
            text,
            done[text].who,
            done[text].why,
            datetime.fromtimestamp(done[text].at_ms / 1000, UTC).isoformat(timespec="seconds"),
        )
        for text in problems
        if text in done
    ]
    return [text for text in problems if text not in done], noted


class AuditReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """The result of an audit; `problems` is empty exactly when `ok`. `remarks` state the limits of the proof."""

    ok: bool
    products: list[ProductReport]
    problems: list[str]
    remarks: list[str] = []
    acknowledged: list[AcknowledgedFinding] = []


def balance(
    products: Sequence[ProductFacts],
    *,
    unknown_captures: Sequence[Capture] = (),
    client_log: ClientAnswers | None = None,
    other_problems: Sequence[str] = (),
    other_remarks: Sequence[str] = (),
) -> AuditReport:
    """Compares every book with every other. `unknown_captures` belong to no known order."""
    problems = list(other_problems)
    reports = []
    for facts in products:
        report, found = _balance_product(facts)
        reports.append(report)
        problems += found
    across = Findings()
    _check_keys([order for facts in products for order in facts.postgres.orders], across)
    for capture in unknown_captures:
        across.add("charged without an order", f"{capture.order_id}, {to_decimal(capture.amount_cents)}")
    if client_log is not None:
        _check_clients(client_log, products, across)
        problems += client_log.complaints
    problems += across.texts()
    remarks = [*other_remarks, *(_remark(facts) for facts in products if facts.log.kept_from_ms)]
    problems, acknowledged = split_acknowledged(problems, [facts.log for facts in products])
    return AuditReport(ok=not problems, products=reports, problems=problems, remarks=remarks, acknowledged=acknowledged)


def _remark(facts: ProductFacts) -> str:
    since = datetime.fromtimestamp(facts.log.kept_from_ms / 1000, UTC)
    return (
        f"product {facts.product_id}: the log is whole from {since:%Y-%m-%d %H:%M:%S} UTC on only;"
        " what it proves starts at the first version of each epoch still kept"
    )


def _balance_product(facts: ProductFacts) -> tuple[ProductReport, list[str]]:
    problems = Findings(f"product {facts.product_id}")
    rows = {order.id: order for order in facts.postgres.orders}
    totals, log_problems = facts.log.check(facts.redis.version if facts.redis else None)
    _check_postgres(facts.postgres, problems)
    _check_redis(facts, problems)
    _check_log_against_rows(facts.log, rows, problems)
    _check_failed(facts, problems)
    charges = _check_charges(facts.captures, rows, problems)
    stranded = _stranded(facts.redis, rows, facts.log) if facts.redis else 0
    if stranded:
        problems.add("stranded", f"{stranded} units are held without a live order")
    oversold = _oversold(facts, totals, charges)
    if oversold:
        problems.add("oversold", f"{oversold} units more than the {facts.postgres.initial} there are")
    return _report(facts, totals, charges, oversold, stranded), problems.texts() + log_problems


def _report(facts: ProductFacts, totals: Totals, charges: ChargedUnits, oversold: int, stranded: int) -> ProductReport:
    redis = facts.redis
    return ProductReport(
        product_id=facts.product_id,
        initial=facts.postgres.initial,
        redis=RedisUnits(redis.available, redis.held, redis.sold) if redis else RedisUnits(),
        postgres={status.value: _units_of(facts.postgres.orders, status) for status in STATUSES},
        log=LogUnits(
            accepted=totals.accepted,
            confirmed=totals.confirmed,
            released=totals.released,
            epochs=totals.epochs,
            versions=totals.versions,
            gaps=totals.gaps,
            repeats=totals.repeats,
        ),
        charges=charges,
        oversold=oversold,
        lost=totals.lost,
        stranded=stranded,
    )


def _units_of(orders: Sequence[AuditedOrder], status: Status) -> OrderUnits:
    units = [order.quantity for order in orders if order.status is status]
    return OrderUnits(len(units), sum(units))


def _check_postgres(book: PostgresBook, problems: Findings) -> None:
    live = sum(order.quantity for order in book.orders if order.status not in GIVEN_BACK)
    problems.expect("Postgres counts as taken", book.taken, live)
    for order in book.orders:
        if order.status not in TERMINAL:
            problems.add("order not ended", f"{order.id} is {order.status}")
    if book.per_user_limit is not None:
        for user, units in _units_by_buyer(book).items():
            if units > book.per_user_limit:
                problems.add("more than one buyer may have", f"user {user}: {units} of {book.per_user_limit}")


def _check_redis(facts: ProductFacts, problems: Findings) -> None:
    book, postgres = facts.redis, facts.postgres
    if book is None:
        problems.add("not in Redis")
        return
    if not book.in_force:
        problems.add("books not in force", "closed, or made for another run of Redis")
    if not book.units.balances:
        problems.add("Redis does not add up", str(book.units))
    problems.expect("initial in Redis", book.initial, postgres.initial)
    problems.expect("epoch in Redis", book.epoch, postgres.epoch)
    if facts.log.newest_epoch or not facts.log.kept_from_ms:  # else the log no longer keeps it
        problems.expect("newest epoch in the log", facts.log.newest_epoch, book.epoch)
    confirmed = sum(order.quantity for order in postgres.orders if order.status is Status.CONFIRMED)
    problems.expect("sold in Redis", book.sold, confirmed)
    of_entries = sum(entry.quantity for entry in book.entries.values() if entry.state is Entry.HELD)
    problems.expect("held in Redis", book.held, of_entries)
    for entry in book.entries.values():
        problems.add("entry left in Redis", f"order {entry.order_id} is {entry.state}")
    _check_buyers(book, postgres, problems)


def _units_by_buyer(book: PostgresBook) -> Counter[int]:
    units: Counter[int] = Counter()
    for order in book.orders:
        if order.status not in GIVEN_BACK:
            units[order.user_id] += order.quantity
    return units


def _check_buyers(book: RedisBook, postgres: PostgresBook, problems: Findings) -> None:
    expected = _units_by_buyer(postgres)
    for user in expected.keys() | book.buyers.keys():
        if book.buyers.get(user, 0) != expected[user]:
            problems.add(
                "units counted for a buyer", f"user {user}: {book.buyers.get(user, 0)}, expected {expected[user]}"
            )


def _check_log_against_rows(log: LogBook, rows: dict[str, AuditedOrder], problems: Findings) -> None:
    for order_id, placed in log.placed.items():
        row = rows.get(order_id)
        if row is None:
            problems.add("in the log, not in Postgres", f"order {order_id}")
        elif (row.user_id, row.quantity) != (placed.user_id, placed.quantity):
            problems.add(
                "row unlike its order.placed",
                f"{order_id}: user {row.user_id} quantity {row.quantity}, "
                f"placed by {placed.user_id} quantity {placed.quantity}",
            )
        elif (row.unit_price_cents, row.currency) != (placed.unit_price_cents, placed.currency):
            problems.add(
                "row unlike its order.placed",
                f"{order_id}: price {row.unit_price_cents}, placed at {placed.unit_price_cents}",
            )
    for order_id, end in log.ended.items():
        row = rows.get(order_id)
        if row is None:
            problems.add("ended without a row", f"order {order_id}, {end.status}")
        elif row.status is not end.status:
            problems.add("statuses differ", f"order {order_id}: Postgres {row.status}, log {end.status}")
    whole_from = log.whole_from  # computed once for all rows: it looks at all openings and versions
    for row in rows.values():
        if row.epoch >= whole_from and row.placed_at_ms >= log.kept_from_ms:  # else its log is gone
            _check_row_in_log(row, log, problems)


def _check_row_in_log(row: AuditedOrder, log: LogBook, problems: Findings) -> None:
    if row.id not in log.placed and row.status is not Status.FAILED:
        # A rebuild fails an order that only Redis has and that does not fit: such an order was never on the log.
        problems.add("in Postgres, not in the log", f"order {row.id}")
    if row.status in TERMINAL and row.id not in log.ended:
        problems.add("end not in the log", f"order {row.id} is {row.status}")


def _check_failed(facts: ProductFacts, problems: Findings) -> None:
    lowest_after = cache(facts.log.lowest_after)  # it scans all later versions
    for row in facts.postgres.orders:
        failed = row.status is Status.FAILED and row.id in facts.log.placed
        if failed and _failed_without_reason(row, facts, lowest_after(row.epoch)):
            problems.add("failed although there were units", f"order {row.id}: {row.reason}")


def _failed_without_reason(row: AuditedOrder, facts: ProductFacts, lowest: int | None) -> bool:
    """Whether an accepted order is `failed` although the books show no reason for it.

    A reason is one of two. The epoch that accepted it returned its units: then it held them to the end, and only the
    database can have refused the order, which forces a rebuild. Or the reservation was lost with its epoch: then later
    epochs lacked units (`lowest`: the fewest they had), or its key, the buyer's limit or the end of the sale prevented it.
    """
    end = facts.log.ended.get(row.id)
    if end is None:
        return False  # reported elsewhere
    if row.reason == REFUSED_BY_DATABASE and facts.log.newest_epoch > row.epoch:
        return False
    if end.epoch == row.epoch and end.returned is not UNSET and end.returned > 0:
        return True
    lacked = (lowest is not None and lowest < row.quantity) or _lacked_units(row, facts)
    return not (lacked or facts.log.kept_from_ms or _had_another_reason(row, facts))


def _lacked_units(row: AuditedOrder, facts: ProductFacts) -> bool:
    """Whether the other rows left no units for this order when it failed: a rebuild counts the rows it finds."""
    initial = min((opening.initial for epoch, opening in facts.log.openings.items() if epoch >= row.epoch), default=0)
    others = sum(
        order.quantity
        for order in facts.postgres.orders
        if order.id != row.id
        and (order.created_at_ms <= row.created_at_ms or _accepted_before(order, row, facts))
        and order.status is not Status.FAILED
        and (order.status is not Status.PAYMENT_FAILED or order.updated_at_ms > row.created_at_ms - REBUILD_MS)
    )
    return others + row.quantity > initial


def _accepted_before(order: AuditedOrder, row: AuditedOrder, facts: ProductFacts) -> bool:
    """A rebuild also counts orders that were accepted before and are not stored yet."""
    first, then = facts.log.placed.get(order.id), facts.log.placed[row.id]
    return first is not None and (first.epoch, first.version) < (then.epoch, then.version)


def _had_another_reason(row: AuditedOrder, facts: ProductFacts) -> bool:
    """Whether its key belonged to another order, its buyer had reached the limit, or the sale was over."""
    book, placed, end = facts.postgres, facts.log.placed[row.id], facts.log.ended[row.id]
    others = [order for order in book.orders if order.user_id == row.user_id and order.id != row.id]
    key_used_again = any(order.key_hash == placed.key_hash for order in others)  # UNSET equals no hash
    units = row.quantity + sum(order.quantity for order in others if order.status is not Status.FAILED)
    over_limit = book.per_user_limit is not None and units > book.per_user_limit
    return key_used_again or over_limit or (book.closes_at_ms is not None and end.at_ms >= book.closes_at_ms)


def _check_charges(captures: Sequence[Capture], rows: dict[str, AuditedOrder], problems: Findings) -> ChargedUnits:
    by_order: defaultdict[str, list[Capture]] = defaultdict(list)
    for capture in captures:
        by_order[capture.order_id].append(capture)
    captured = double = 0
    for order_id, taken in by_order.items():
        row = rows.get(order_id)
        if row is None:
            problems.add("charged without a row", f"order {order_id}")
            continue
        captured += row.quantity
        double += row.quantity if len(taken) > 1 else 0
        _check_captures(row, taken, problems)
    for row in rows.values():
        if row.status is Status.CONFIRMED and row.id not in by_order:
            problems.add("confirmed without a charge", f"order {row.id}")
    return ChargedUnits(captured, double)


def _check_captures(row: AuditedOrder, taken: Sequence[Capture], problems: Findings) -> None:
    if len(taken) > 1:
        problems.add("charged twice", f"order {row.id}: {len(taken)} captures")
    if row.status in GIVEN_BACK:
        problems.add("charged, not sold", f"order {row.id} is {row.status}")
    for capture in taken:
        if (capture.amount_cents, capture.currency) != (row.total_cents, row.currency):
            problems.add(
                "wrong amount charged",
                f"order {row.id}: {to_decimal(capture.amount_cents)} {capture.currency}, "
                f"expected {to_decimal(row.total_cents)} {row.currency}",
            )


def _stranded(book: RedisBook, rows: dict[str, AuditedOrder], log: LogBook) -> int:
    """Held units without an order that is on the log and has not ended."""
    live = 0
    for entry in book.entries.values():
        row = rows.get(entry.order_id)
        alive = entry.order_id in log.placed if row is None else row.status not in TERMINAL
        live += entry.quantity if alive and entry.state is Entry.HELD else 0
    return max(0, book.held - live)


def _oversold(facts: ProductFacts, totals: Totals, charges: ChargedUnits) -> int:
    live = sum(order.quantity for order in facts.postgres.orders if order.status not in GIVEN_BACK)
    return max(0, max(live, charges.captured, totals.confirmed) - facts.postgres.initial)


def _check_keys(orders: Sequence[AuditedOrder], problems: Findings) -> None:
    """A user's key has one order while keys are remembered. A failed order took no units and holds no key."""
    by_key: defaultdict[tuple[int, str], list[AuditedOrder]] = defaultdict(list)
    for order in orders:
        if order.key_hash is not None and order.status is not Status.FAILED:
            by_key[order.user_id, order.key_hash].append(order)
    for (user, _), same in by_key.items():
        for first, second in pairwise(sorted(same, key=lambda order: order.placed_at_ms)):
            if second.placed_at_ms - first.placed_at_ms < KEY_LIFETIME_MS:
                problems.add("one key, two orders", f"user {user}: {first.id} and {second.id}")


def _check_clients(client_log: ClientAnswers, products: Sequence[ProductFacts], problems: Findings) -> None:
    rows = {order.id: order for facts in products for order in facts.postgres.orders}
    for order_id in client_log.accepted:
        if order_id not in rows or rows[order_id].status not in TERMINAL:
            problems.add("accepted, not served", f"order {order_id} got 202")
    for order_id in rows.keys() - client_log.accepted - client_log.unknown:
        order = rows[order_id]
        scoped_key = (order.user_id, order.key_hash)
        if order_id in client_log.refused or scoped_key in client_log.refused_keys:
            problems.add("refused, yet taken", f"order {order_id}")
        elif scoped_key not in client_log.unknown_keys:
            problems.add("order nobody placed", f"{order_id} is in no client's log")
    for order_id, asked in client_log.quantities.items():
        row = rows.get(order_id)
        if row is not None and asked != {row.quantity}:
            problems.add(
                "accepted for another body", f"order {order_id}: asked for {sorted(asked)}, has {row.quantity}"
            )
    for (user, _), order_ids in client_log.doubled_keys.items():
        problems.add("one key, two orders", f"user {user} was told {' and '.join(sorted(order_ids))}")
