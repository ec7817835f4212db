"""The balance: right books are found right, and each wrong book is found and named."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.audit.balance import AuditReport, balance
from consumers.audit.facts import Capture, ClientAnswers, ProductFacts
from consumers.audit.missing import last_version
from consumers.audit.show import show
from sale.orders import REFUSED_BY_DATABASE
from schemas.events import OrderPlaced, OrderStatusChanged, SaleControlled, StockOpened
from schemas.order_state import Entry, Status

from .sale_history import STARTED_MS, Sale

ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("buy"), st.integers(1, 5), st.integers(1, 4)),
        st.tuples(st.just("confirm"), st.integers(0, 20)),
        st.tuples(st.just("decline"), st.integers(0, 20)),
        st.tuples(st.just("rebuild")),
    ),
    max_size=40,
)


def small_sale() -> Sale:
    """Three confirmed, one declined, nothing under way."""
    sale = Sale(initial=10)
    orders = [sale.buy(user, 2) for user in range(1, 5)]
    assert orders[3] is not None
    sale.end(orders[3], Status.PAYMENT_FAILED)
    sale.end_all()
    return sale


def problems_of(facts: ProductFacts) -> str:
    report = balance([facts])
    assert report.ok == (not report.problems)
    return "\n".join(report.problems)


@given(actions=ACTIONS, seed=st.integers(0, 2**16))
def test_books_of_any_right_history_balance(actions: list[tuple[str, int, int]], seed: int) -> None:
    sale = Sale(initial=20)
    for action, *arguments in actions:
        if action == "buy":
            user, quantity = arguments
            sale.buy(user, quantity)
        elif action == "rebuild":
            sale.rebuild()
        elif sale.held_orders:
            order = sale.held_orders[arguments[0] % len(sale.held_orders)]
            sale.end(order, Status.CONFIRMED if action == "confirm" else Status.PAYMENT_FAILED)
    sale.end_all()
    report = balance([sale.facts(random.Random(seed))])
    assert report.problems == []
    assert report.ok
    product = report.products[0]
    assert product.log.accepted == product.log.confirmed + product.log.released
    assert product.redis.sold == product.postgres["confirmed"].units == product.charges.captured
    assert (product.oversold, product.lost, product.stranded) == (0, 0, 0)


def test_the_report_has_the_shape_that_outside_checks_rely_on() -> None:
    report = msgspec.json.decode(msgspec.json.encode(balance([small_sale().facts()])))
    assert report["ok"] is True
    assert report["problems"] == []
    product = report["products"][0]
    assert product["redis"] == {"available": 4, "held": 0, "sold": 6}
    assert product["postgres"]["confirmed"] == {"orders": 3, "units": 6}
    assert product["postgres"]["payment_failed"] == {"orders": 1, "units": 2}
    assert product["log"] == {
        "accepted": 8,
        "confirmed": 6,
        "released": 2,
        "epochs": 1,
        "versions": 8,
        "gaps": 0,
        "repeats": 0,
    }
    assert product["charges"] == {"captured": 6, "double": 0}
    assert {"product_id", "initial", "oversold", "lost", "stranded"} <= product.keys()


def with_redis(**changes: Any) -> Callable[[ProductFacts], ProductFacts]:
    def corrupt(facts: ProductFacts) -> ProductFacts:
        assert facts.redis is not None
        return replace(facts, redis=replace(facts.redis, **changes))

    return corrupt


def with_first_row(**changes: Any) -> Callable[[ProductFacts], ProductFacts]:
    def corrupt(facts: ProductFacts) -> ProductFacts:
        first, *others = facts.postgres.orders
        return replace(facts, postgres=replace(facts.postgres, orders=[replace(first, **changes), *others]))

    return corrupt


def with_captures(change: Callable[[list[Capture]], list[Capture]]) -> Callable[[ProductFacts], ProductFacts]:
    return lambda facts: replace(facts, captures=change(list(facts.captures)))


WRONG_BOOKS = {
    "Redis does not add up": with_redis(available=5),
    "sold in Redis: 7, expected 6": with_redis(sold=7, available=3),
    "held in Redis: 1, expected 0": with_redis(held=1, available=3),
    "initial in Redis": with_redis(initial=11, available=5),
    "epoch in Redis": with_redis(epoch=2),
    "books not in force": with_redis(in_force=False),
    "units counted for a buyer: user 1": with_redis(buyers={1: 3, 2: 2, 3: 2}),
    "version missing: epoch 1 version 9 of 9": with_redis(version=9),
    "not in Redis": lambda facts: replace(facts, redis=None),
    "Postgres counts as taken: 7, expected 6": lambda facts: replace(facts, postgres=replace(facts.postgres, taken=7)),
    "is awaiting_payment": with_first_row(status=Status.AWAITING_PAYMENT),
    "statuses differ": with_first_row(status=Status.PAYMENT_FAILED),
    "row unlike its order.placed": with_first_row(quantity=1),
    "price 1, placed at 999": with_first_row(unit_price_cents=1),
    "in the log, not in Postgres": lambda facts: replace(
        facts, postgres=replace(facts.postgres, orders=facts.postgres.orders[1:])
    ),
    "charged twice": with_captures(lambda captures: [*captures, captures[0]]),
    "confirmed without a charge": with_captures(lambda captures: captures[1:]),
    "wrong amount charged": with_captures(lambda captures: [replace(captures[0], amount_cents=1), *captures[1:]]),
    "15.00 EUR, expected 19.98 USD": with_captures(
        lambda captures: [replace(captures[0], amount_cents=1500, currency="EUR"), *captures[1:]]
    ),
    "charged, not sold": with_captures(lambda captures: [*captures, Capture(f"{3:032x}", 1998, "USD")]),
    "charged without a row": with_captures(lambda captures: [*captures, Capture("nobody", 1998, "USD")]),
}


@pytest.mark.parametrize("named", WRONG_BOOKS)
def test_a_wrong_book_is_named(named: str) -> None:
    facts = small_sale().facts()
    assert problems_of(facts) == ""
    assert named in problems_of(WRONG_BOOKS[named](facts))


@pytest.mark.parametrize("held", [True, False], ids=["held to its end", "lost with older books"])
def test_an_order_that_failed_although_there_were_units_is_named(held: bool) -> None:
    sale = small_sale()
    order = sale.buy(9, 1)
    assert order is not None
    if not held:
        sale.lose(order)
        sale.rebuild()
    sale.fail(order, "postgres: read-only")
    assert f"failed although there were units: order {order}: postgres: read-only" in problems_of(sale.facts())


@pytest.mark.parametrize("why", ["sold out", "key used again", "database"])
def test_an_order_that_failed_for_a_reason_that_the_books_show_is_none(why: str) -> None:
    sale = small_sale()
    order = sale.buy(9, 1, key_hash="k")
    assert order is not None
    sale.lose(order)
    sale.rebuild()
    if why == "sold out":
        sale.buy(10, sale.available)
    if why == "key used again":
        sale.buy(9, 1, key_hash="k")
    sale.fail(order, REFUSED_BY_DATABASE if why == "database" else "lost")
    sale.end_all()
    assert problems_of(sale.facts()) == ""


def test_the_whole_log_is_looked_through_no_more_often_for_more_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look costs as much as the log is long: one an order would take hours for a hundred thousand."""
    looks = Counter[int]()

    def counted(orders: int) -> None:
        sale = Sale(initial=orders)
        for user in range(orders):
            sale.buy(user + 1, 1)
        sale.end_all()
        with monkeypatch.context() as patched:

            def look(*args: Any) -> int:
                looks[orders] += 1
                return last_version(*args)

            patched.setattr("consumers.audit.log_book.last_version", look)
            assert balance([sale.facts()]).ok

    counted(10)
    counted(100)
    assert looks[100] == looks[10] > 0


def test_a_unit_too_many_is_oversold() -> None:
    sale = small_sale()
    sale.available += 5  # as an old copy of Redis would have it
    for user in range(5):
        sale.buy(user, 2)
    sale.end_all()
    report = balance([sale.facts()])
    assert report.products[0].oversold > 0
    assert any("oversold" in problem for problem in report.problems)


def changed_log(change: Callable[[Sale], None]) -> AuditReport:
    sale = small_sale()
    change(sale)
    return balance([sale.facts()])


def without(sale: Sale, kind: type, position: int) -> None:
    found = [at for at, (event, _) in enumerate(sale.events) if isinstance(event, kind)]
    del sale.events[found[position]]


def test_a_missing_end_is_lost_units_and_a_gap() -> None:
    report = changed_log(lambda sale: without(sale, OrderStatusChanged, 1))
    assert report.products[0].lost == 2
    assert report.products[0].log.gaps == 1
    assert any("accepted without an end" in problem for problem in report.problems)


def test_a_row_that_the_log_never_announced_is_named() -> None:
    report = changed_log(lambda sale: without(sale, OrderPlaced, 0))
    assert any("in Postgres, not in the log" in problem for problem in report.problems)


def test_a_version_of_two_orders_is_a_repeat_but_a_copy_is_not() -> None:
    def copy(sale: Sale) -> None:
        sale.events.append(sale.events[1])

    def reuse(sale: Sale) -> None:
        event, at = sale.events[1]
        assert isinstance(event, OrderPlaced)
        sale.events.append((msgspec.structs.replace(event, order_id="another"), at))

    assert changed_log(copy).ok
    assert changed_log(reuse).products[0].log.repeats == 1


def test_units_released_twice_are_named() -> None:
    def release_again(sale: Sale) -> None:
        event, at = next(e for e in sale.events if isinstance(e[0], OrderStatusChanged))
        assert isinstance(event, OrderStatusChanged)
        sale.version += 1
        again = msgspec.structs.replace(event, version=sale.version, available=sale.available + 2)
        sale.events.append((again, at))

    assert any("done twice in one epoch" in problem for problem in changed_log(release_again).problems)


def test_an_available_that_does_not_follow_is_named() -> None:
    def miscount(sale: Sale) -> None:
        event, at = sale.events[2]
        assert isinstance(event, OrderPlaced)
        sale.events[2] = (msgspec.structs.replace(event, available=event.available + 1), at)

    assert any("available does not follow" in problem for problem in changed_log(miscount).problems)


def test_two_different_ends_are_named_and_the_same_end_under_a_new_epoch_is_not() -> None:
    def end_otherwise(sale: Sale) -> None:
        event, at = sale.events[-1]
        assert isinstance(event, OrderStatusChanged)
        sale.events.append((msgspec.structs.replace(event, status=Status.FAILED), at))

    def announce_again(sale: Sale) -> None:
        event, _ = sale.events[-1]
        assert isinstance(event, OrderStatusChanged)
        sale.sold, sale.held = sale.sold - 2, sale.held + 2  # a rebuild counts what has just ended as held
        sale.rebuild()
        sale.sold, sale.held, sale.version = sale.sold + 2, sale.held - 2, 1
        again = msgspec.structs.replace(event, epoch=sale.epoch, version=1, available=sale.available)
        sale.events.append((again, sale.now_ms))

    assert any("order with two ends" in problem for problem in changed_log(end_otherwise).problems)
    assert changed_log(announce_again).problems == []


def a_sale_that_was_wrong() -> Sale:
    sale = small_sale()
    event, at_ms = sale.events[1]
    assert isinstance(event, OrderPlaced)
    for version in range(1, 9):  # more than are shown in words
        twin = msgspec.structs.replace(event, order_id=f"{900 + version:032x}", version=version)
        sale.events.append((twin, at_ms))
    return sale


def acknowledge(sale: Sale, findings: list[str]) -> None:
    note = SaleControlled(
        action_id=1,
        product_id=sale.product_id,
        action="acknowledge",
        who="Ned",
        why="redis went back",
        at_ms=STARTED_MS,
        findings=tuple(findings),
    )
    sale.events.append((note, sale.now_ms))


def test_what_an_operator_acknowledged_is_shown_and_fails_no_more() -> None:
    """In whatever order the log is read."""
    sale = a_sale_that_was_wrong()
    found = balance([sale.facts()]).problems
    acknowledge(sale, found)
    for seed in range(5):
        report = balance([sale.facts(random.Random(seed))])
        assert report.ok, report.problems
        assert sorted(done.text for done in report.acknowledged) == sorted(found)
        assert (report.acknowledged[0].who, report.acknowledged[0].why) == ("Ned", "redis went back")
        assert report.acknowledged[0].when == "2027-01-15T08:00:00+00:00"
        assert f"  - {found[0]} (Ned, 2027" in show(report)


def test_what_is_found_after_an_acknowledgement_fails_again() -> None:
    """One more of a kind of which most are only counted, too."""
    sale = a_sale_that_was_wrong()
    acknowledge(sale, balance([sale.facts()]).problems)
    event, at_ms = sale.events[1]
    assert isinstance(event, OrderPlaced)
    sale.events.append((msgspec.structs.replace(event, order_id="f" * 32, version=1), at_ms))
    assert not balance([sale.facts()]).ok


DAY_MS = 24 * 3_600_000


def a_settlement_without_news(sale: Sale) -> None:
    """It died with Redis; the rebuild has the order announced again under the new epoch."""
    last, _ = sale.events.pop()
    assert isinstance(last, OrderStatusChanged)
    sale.sold, sale.held = sale.sold - last.quantity, sale.held + last.quantity
    sale.rebuild(found=(0, 0), announced_again=1)
    sale.sold, sale.held, sale.version = sale.sold + last.quantity, sale.held - last.quantity, 1
    again = msgspec.structs.replace(last, epoch=sale.epoch, version=1, available=sale.available)
    sale.events.append((again, sale.now_ms))


def reservations_lost_with_redis(sale: Sale, orders: int) -> None:
    """Accepted while Kafka was away, and before others of which the log knows; then Redis lost its data."""
    for _ in range(orders):
        lost = sale.buy(9)
        assert lost is not None
        sale.events.pop()
        sale.held_orders.remove(lost)
        del sale.rows[lost]
    kept = sale.buy(5)
    assert kept is not None
    sale.end(kept, Status.CONFIRMED)
    sale.available, sale.held = sale.available + orders, sale.held - orders


def test_only_a_closed_epoch_may_miss_news_and_however_long_ago() -> None:
    def much_later(sale: Sale) -> None:
        """All was down: the epoch had ended long before anybody was there to open the next."""
        sale.now_ms += DAY_MS
        a_settlement_without_news(sale)

    assert changed_log(a_settlement_without_news).problems == []
    assert changed_log(much_later).problems == []
    assert changed_log(lambda sale: without(sale, OrderStatusChanged, 1)).products[0].log.gaps == 1


@pytest.mark.parametrize("told", [True, False])  # by openings that say what Redis still had, and by older ones
def test_reservations_that_redis_lost_may_be_missing_and_not_one_more(told: bool) -> None:
    def lose_three(sale: Sale) -> None:
        reservations_lost_with_redis(sale, 3)
        sale.rebuild(found=(0, 0) if told else None)

    def lose_three_and_another(sale: Sale) -> None:
        reservations_lost_with_redis(sale, 3)
        without(sale, OrderPlaced, 0)
        sale.rebuild(found=(0, 0) if told else None)

    assert changed_log(lose_three).problems == []
    assert changed_log(lose_three_and_another).products[0].log.gaps == 1


def test_nothing_may_be_missing_where_redis_lost_nothing() -> None:
    """A restart: the opening found the books whole, so each reservation in them is published in the end."""

    def restart(sale: Sale) -> None:
        reservations_lost_with_redis(sale, 3)
        sale.rebuild(found=(sale.epoch, sale.version))

    assert changed_log(restart).products[0].log.gaps == 3


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("first", [0, 1, 350, 700])
def test_orders_that_are_missing_from_a_short_sale_are_missed_after_a_restart(first: int, told: bool) -> None:
    """300 of 1,000, of a sale that took seconds, its first and its last ones among them."""
    sale = Sale(initial=1_000)
    orders = [sale.buy(user) for user in range(1, 1_001)]
    sale.end_all()
    gone = set(orders[first : first + 300])
    sale.events = [event for event in sale.events if getattr(event[0], "order_id", None) not in gone]
    sale.rebuild(found=(sale.epoch, sale.version) if told else None, announced_again=0)
    report = balance([sale.facts()])
    assert not report.ok
    log = [problem for problem in report.problems if ": log: " in problem]
    assert any("version missing" in problem or "units of no order" in problem for problem in log), report.problems
    assert report.products[0].log.gaps == 600 or not told


def test_an_opening_cannot_count_units_that_no_order_has_taken() -> None:
    """The log's tail is gone, and Redis too: what was sold in it shows in the next opening."""

    def cut(sale: Sale) -> None:
        del sale.events[-3:]
        sale.rebuild(found=(0, 0), announced_again=0)

    sale = Sale(initial=10)
    for user in range(1, 6):
        sale.buy(user)
    cut(sale)
    assert "opened with units of no order: epoch 2: 3 more" in problems_of(sale.facts())


def test_of_a_log_that_was_lost_nothing_is_missed() -> None:
    sale = small_sale()
    del sale.events[1:6]
    sale.rebuild(found=(1, 8), log_lost=True)
    assert problems_of(sale.facts()) == ""


def test_a_proof_starts_where_the_log_starts() -> None:
    """Retention has cut the first records off: what was before is neither missing nor lost."""
    sale = small_sale()
    facts = sale.facts()
    cut = Sale(initial=10)
    cut.__dict__.update(sale.__dict__)
    cut.events = sale.events[3:]
    kept = cut.facts()
    assert problems_of(kept) != ""
    kept.log.kept_from_ms = STARTED_MS + 10_000
    assert not any("missing" in problem for problem in balance([kept]).problems)
    assert problems_of(facts) == ""


@pytest.mark.parametrize("kept", [0, 4])
def test_where_retention_has_taken_the_opening_too_the_rest_is_proved_and_the_report_says_from_when(kept: int) -> None:
    """Also where nothing of the product is left: a sale so old is no fault of today's books."""
    sale = small_sale()
    sale.events = sale.events[len(sale.events) - kept :]
    facts = sale.facts()
    assert problems_of(facts) != ""
    facts.log.kept_from_ms = STARTED_MS + 10_000_000
    report = balance([facts])
    assert report.problems == []
    [remark] = report.remarks
    assert "the log is whole from 20" in remark
    assert remark in show(report)


def test_what_a_cut_log_has_kept_must_still_follow() -> None:
    """A version that says something else than the ones before it is found without the opening as well."""
    sale = small_sale()
    facts = sale.facts()
    facts.log.openings.clear()
    facts.log.kept_from_ms = STARTED_MS
    epoch = facts.log.newest_epoch
    version = max(facts.log.uses(epoch))
    use = facts.log.uses(epoch)[version]
    facts.log._uses[epoch][version] = replace(use, available=use.available + 1)
    assert "available does not follow" in "\n".join(balance([facts]).problems)


def test_orders_of_a_log_that_was_wiped_are_not_missed() -> None:
    sale = small_sale()
    sale.events.clear()
    sale.rebuild()
    assert problems_of(sale.facts()) == ""


def test_an_opening_that_came_late_to_a_wiped_log_does_not_make_it_whole() -> None:
    """Its producer tried once more: the epoch's orders are gone all the same."""
    sale = small_sale()
    opening = sale.events[0]
    sale.events.clear()
    sale.rebuild()
    sale.events.insert(0, opening)
    assert problems_of(sale.facts()) == ""


def test_a_left_entry_is_named_and_stranded_where_its_order_has_ended() -> None:
    sale = small_sale()
    facts = sale.facts()
    assert facts.redis is not None
    order_id = facts.postgres.orders[0].id
    held = replace(facts.redis, held=2, sold=4, entries={order_id: sale.entry(order_id)})
    settled = replace(facts.redis, entries={order_id: sale.entry(order_id, Entry.SOLD)})
    report = balance([replace(facts, redis=held)])
    assert report.products[0].stranded == 2
    assert any("stranded" in problem for problem in report.problems)
    assert "entry left in Redis: order" in problems_of(replace(facts, redis=settled))


def test_one_key_has_one_order() -> None:
    sale = Sale()
    sale.buy(1, key_hash="k")
    sale.buy(2, key_hash="k")
    sale.end_all()
    assert problems_of(sale.facts()) == ""
    sale.buy(1, key_hash="k")
    sale.end_all()
    assert "one key, two orders: user 1" in problems_of(sale.facts())


def test_client_logs_find_what_was_promised_and_what_nobody_asked_for() -> None:
    facts = small_sale().facts()
    ids = [order.id for order in facts.postgres.orders]
    right = ClientAnswers(accepted=frozenset(ids[:3]), unknown=frozenset(ids[3:]))
    wrong = ClientAnswers(accepted=frozenset([*ids[:2], "gone"]), refused=frozenset(ids[3:]))
    assert balance([facts], client_log=right).ok
    told = "\n".join(balance([facts], client_log=wrong).problems)
    assert "accepted, not served: order gone" in told
    assert f"order nobody placed: {ids[2]}" in told
    assert f"refused, yet taken: order {ids[3]}" in told


def test_an_order_of_another_body_than_was_accepted_is_named_and_so_is_every_complaint() -> None:
    facts = small_sale().facts()
    ids = frozenset(order.id for order in facts.postgres.orders)
    first = facts.postgres.orders[0].id
    right = ClientAnswers(accepted=ids, quantities={first: frozenset({2})})
    wrong = ClientAnswers(accepted=ids, quantities={first: frozenset({1, 2})}, complaints=["clients: no Retry-After"])
    assert balance([facts], client_log=right).ok
    told = balance([facts], client_log=wrong).problems
    assert told == ["clients: no Retry-After", f"accepted for another body: order {first}: asked for [1, 2], has 2"]


def test_a_buyer_who_has_more_than_the_limit_is_named() -> None:
    facts = small_sale().facts()
    assert problems_of(replace(facts, postgres=replace(facts.postgres, per_user_limit=2))) == ""
    assert "more than one buyer may have: user 1: 2 of 1" in problems_of(
        replace(facts, postgres=replace(facts.postgres, per_user_limit=1))
    )


def test_an_order_that_failed_after_it_was_given_to_payment_took_no_path() -> None:
    def announce(sale: Sale, status: Status) -> None:
        event, at = next(e for e in sale.events if isinstance(e[0], OrderStatusChanged))
        assert isinstance(event, OrderStatusChanged)
        sale.events.append((msgspec.structs.replace(event, status=status), at))

    assert changed_log(lambda sale: announce(sale, Status.NEEDS_RECONCILIATION)).ok

    def fail_late(sale: Sale) -> None:
        announce(sale, Status.AWAITING_PAYMENT)
        announce(sale, Status.FAILED)

    assert any("statuses that are no path" in problem for problem in changed_log(fail_late).problems)


def test_a_charge_of_no_order_is_named() -> None:
    report = balance([small_sale().facts()], unknown_captures=[Capture("x", 100, "USD")])
    assert report.problems == ["charged without an order: x, 1.00"]


def test_ten_thousand_findings_of_one_kind_leave_room_for_another() -> None:
    sale = Sale(initial=200)
    for user in range(100):
        sale.buy(user)
    facts = replace(sale.facts(), redis=None)
    problems = balance([facts]).problems
    assert any("95 more" in problem for problem in problems)
    assert any("not in Redis" in problem for problem in problems)


def test_an_opening_that_does_not_add_up_is_named() -> None:
    def open_wrongly(sale: Sale) -> None:
        event, at = sale.events[0]
        assert isinstance(event, StockOpened)
        sale.events[0] = (msgspec.structs.replace(event, sold=1), at)

    assert any("opening that does not add up" in problem for problem in changed_log(open_wrongly).problems)


def test_people_read_the_verdict_and_every_problem() -> None:
    facts = small_sale().facts()
    assert show(balance([facts])).endswith("The books balance.")
    told = show(balance([replace(facts, redis=None)]))
    assert "do NOT balance" in told
    assert "not in Redis" in told
