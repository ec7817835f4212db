"""The ledger as a state machine: any sequence of calls to the real scripts on a real server agrees with a model of ten lines each."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from infra.redis.client import connect_redis
from infra.settings import Settings
from sale.books import keys
from sale.books.inventory import Held, Inventory, Known, NotVerified, Refused, Reservation, SettledOtherwise, Settlement
from schemas.ids import ProductId
from schemas.order_state import Entry, Status
from tests.books import announcement, code, open_books, read_books, read_model, wish

FAR_MS = 4_000_000_000_000
OUTCOMES = st.sampled_from([Entry.SOLD, Entry.RELEASED])
USERS = st.integers(1, 4)
QUANTITIES = st.integers(1, 4)
PRODUCT = ProductId(7)


@dataclass
class Model:
    """What the books should be."""

    initial: int
    available: int
    limit: int | None
    max_held: int
    held: int = 0
    sold: int = 0
    epoch: int = 1
    version: int = 0
    state: str = "open"
    verified: bool = True
    opens: int | None = None
    closes: int | None = None
    entries: dict[str, tuple[Entry, int, int, int]] = field(default_factory=dict)  # state, epoch, version, quantity
    buyers: dict[int, int] = field(default_factory=dict)
    accepted: dict[tuple[int, str] | str, Reservation] = field(default_factory=dict)

    def in_force(self) -> bool:
        return self.verified and self.state != "closed"

    def key_of(self, asked: Reservation) -> tuple[int, str] | str:
        return (asked.user_id, asked.hashed_key) if asked.hashed_key else asked.order_id

    def refusal(self, asked: Reservation) -> str | None:
        """Why not, in the order in which the design asks (R5); None when units are to be had."""
        if not self.in_force():
            return "unverified"
        if self.key_of(asked) in self.accepted:
            return "known"
        if self.state == "paused":
            return "paused"
        if self.opens:
            return "not_open"
        if self.closes == 1:
            return "closed"
        if self.limit is not None and self.buyers.get(asked.user_id, 0) + asked.quantity > self.limit:
            return "user_limit"
        if asked.quantity > self.available:
            return "sold_out"
        return "busy" if self.held_orders >= self.max_held else None

    @property
    def held_orders(self) -> int:
        return sum(state is Entry.HELD and quantity > 0 for state, _, _, quantity in self.entries.values())

    def take(self, asked: Reservation) -> None:
        self.available -= asked.quantity
        self.held += asked.quantity
        self.version += 1
        self.entries[asked.order_id] = (Entry.HELD, self.epoch, self.version, asked.quantity)
        self.buyers[asked.user_id] = self.buyers.get(asked.user_id, 0) + asked.quantity
        self.accepted[self.key_of(asked)] = asked

    def settle(self, asked: Reservation, outcome: Entry) -> None:
        self.held -= asked.quantity
        self.version += 1
        if outcome is Entry.SOLD:
            self.sold += asked.quantity
        else:
            self.available += asked.quantity
            self.buyers[asked.user_id] -= asked.quantity
        self.entries[asked.order_id] = (outcome, self.epoch, self.version, asked.quantity)


class Ledger(RuleBasedStateMachine):
    """Every rule does one thing to both and compares the answers; the invariants compare the whole books."""

    settings: Settings
    orders = Bundle("orders")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.redis = connect_redis(self.settings, timeout_s=5.0)
        self.inventory = Inventory(self.redis)

    def teardown(self) -> None:
        self.run(self.redis.aclose())
        self.runner.close()

    def run(self, coroutine: Any) -> Any:
        return self.runner.run(coroutine)

    @initialize(
        initial=st.integers(0, 12), limit=st.none() | st.integers(1, 6), max_held=st.integers(1, 5) | st.just(100)
    )
    def open(self, initial: int, limit: int | None, max_held: int) -> None:
        self.run(self.redis.flushdb())
        self.model = Model(initial, initial, limit, max_held)
        fields = {} if limit is None else {"per_user_limit": limit}
        assert self.run(open_books(self.redis, PRODUCT, initial, max_held=max_held, **fields)) == b"opened"

    @rule(target=orders, user=USERS, quantity=QUANTITIES, key=st.none() | st.sampled_from("abc"))
    def reserve(self, user: int, quantity: int, key: str | None) -> Reservation | MultipleResults[Reservation]:
        asked = wish(PRODUCT, user=user, quantity=quantity, key=key)
        if self._ask(asked) == "held":
            return asked
        self._ask(asked)  # refusals are judged anew; a known key stays known
        return multiple()

    @rule(asked=orders)
    def repeat(self, asked: Reservation) -> None:
        self._ask(asked)

    @rule(asked=orders, quantity=QUANTITIES)
    def repeat_with_this_quantity(self, asked: Reservation, quantity: int) -> None:
        self._ask(
            Reservation(
                asked.order_id, asked.user_id, PRODUCT, quantity, asked.unit_price_cents, "USD", asked.hashed_key
            )
        )

    def _ask(self, asked: Reservation) -> str:
        expected = self.model.refusal(asked)
        answer = self.run(self.inventory.reserve(asked))
        assert code(answer) == (expected or "held")
        match answer:
            case Held(epoch=epoch, version=version, available=available):
                self.model.take(asked)
                assert (epoch, version, available) == (self.model.epoch, self.model.version, self.model.available)
            case Known(order_id=order_id, same_body=same_body):
                first = self.model.accepted[self.model.key_of(asked)]
                assert (order_id, same_body) == (first.order_id, asked.quantity == first.quantity)
            case Refused(reason="sold_out", epoch=epoch, version=version):
                assert (epoch, version) == (self.model.epoch, self.model.version)
        return code(answer)

    @rule(asked=orders, outcome=OUTCOMES)
    def settle(self, asked: Reservation, outcome: Entry) -> None:
        entry = self.model.entries.get(asked.order_id)
        if not self.model.in_force():
            with pytest.raises(NotVerified):
                self._settle(asked, outcome)
        elif entry is None:
            assert self._settle(asked, outcome) is None
        elif entry[0] is Entry.HELD:
            self.model.settle(asked, outcome)
            answer = self._settle(asked, outcome)
            assert isinstance(answer, Settlement)
            assert (answer.epoch, answer.version) == (self.model.epoch, self.model.version)
            assert answer.available == self.model.available
            assert answer.returned == (asked.quantity if outcome is Entry.RELEASED else 0)
            assert self._settle(asked, outcome) == answer  # asked again: the same version, nothing moves
            with pytest.raises(SettledOtherwise):
                self._settle(asked, Entry.SOLD if outcome is Entry.RELEASED else Entry.RELEASED)
        elif entry[0] is outcome:
            again = self._settle(asked, outcome)
            assert isinstance(again, Settlement)
            assert (again.epoch, again.version) == entry[1:3]
        else:
            with pytest.raises(SettledOtherwise):
                self._settle(asked, outcome)

    def _settle(self, asked: Reservation, outcome: Entry) -> Settlement | None:
        answer = self.run(self.inventory.settle([(PRODUCT, asked.order_id, outcome)]))[0]
        assert answer is None or isinstance(answer, Settlement)
        return answer

    @rule(asked=orders, off_by=st.sampled_from([(0, 0), (0, 1), (0, -1), (1, 0)]))
    def project(self, asked: Reservation, off_by: tuple[int, int]) -> None:
        """The news of an end reaches the projector; only that of this very settlement deletes the entry."""
        entry = self.model.entries.get(asked.order_id)
        if entry is None or (off_by == (0, 0) and entry[0] is Entry.HELD):
            return  # nobody announces an end with a reservation's version
        status = Status.PAYMENT_FAILED if entry[0] is Entry.RELEASED else Status.CONFIRMED
        epoch, version = entry[1] + off_by[0], entry[2] + off_by[1]
        if version < 1:
            return
        self.run(self.inventory.project([announcement(asked, status, epoch, version)]))
        if off_by == (0, 0):
            del self.model.entries[asked.order_id]
        # Whatever the version, the buyer sees an end; and it stays (ranks).
        assert self.run(read_model(self.redis, asked.order_id))["rank"] == "100"

    @rule(closed=st.booleans(), asked=orders, lasting=st.sampled_from([False, False, False, True]))
    def trouble(self, closed: bool, asked: Reservation, lasting: bool) -> None:
        """The books are closed, or say that they were made for a Redis run that is not this one; mostly soon made anew."""
        if closed:
            self.run(self.inventory.close(PRODUCT))
            self.model.state = "closed"
        else:
            self.run(self.redis.hset(keys.stock(PRODUCT), "run", "0" * 40))
            self.model.verified = False
        self.books_agree()
        self.settle(asked, Entry.SOLD)
        self._ask(asked)
        if not lasting:
            self.open_anew()

    @rule(state=st.sampled_from(["open", "open", "paused"]))
    def switch(self, state: str) -> None:
        if self.model.state != "closed":  # only a rebuild opens what was closed
            self.run(self.redis.hset(keys.stock(PRODUCT), "state", state))
            self.model.state = state

    @rule(opens=st.sampled_from([None, None, FAR_MS]), closes=st.sampled_from([None, FAR_MS, 1]))
    def set_window(self, opens: int | None, closes: int | None) -> None:
        for name, value in (("opens_at_ms", opens), ("closes_at_ms", closes)):
            if value is None:
                self.run(self.redis.hdel(keys.stock(PRODUCT), name))
            else:
                self.run(self.redis.hset(keys.stock(PRODUCT), name, value))
        self.model.opens, self.model.closes = opens, closes

    @rule()
    def open_anew(self) -> None:
        """New books under the next epoch, with the surviving held entries, as a rebuild leaves them."""
        model = self.model
        books = self.run(read_books(self.redis, PRODUCT))
        survivors = {id_: e for id_, e in books.entries.items() if e.state is Entry.HELD}
        model.epoch, model.version = model.epoch + 1, 0
        model.verified, model.state, model.opens, model.closes = True, "open", None, None
        model.entries = {id_: entry for id_, entry in model.entries.items() if entry[0] is Entry.HELD}
        self.run(self._prepare(survivors))
        fields = {} if model.limit is None else {"per_user_limit": model.limit}
        opened = open_books(
            self.redis, PRODUCT, model.initial, epoch=model.epoch, held=model.held, sold=model.sold,
            max_held=model.max_held, held_orders=len(survivors), **fields,
        )  # fmt: skip
        assert self.run(opened) == b"opened"

    async def _prepare(self, survivors: dict[Any, Any]) -> None:
        epoch = self.model.epoch
        for id_, entry in survivors.items():
            await self.redis.hset(keys.prepared(keys.held(PRODUCT), epoch), id_, entry.line())
            await self.redis.zadd(keys.prepared(keys.due(PRODUCT), epoch), {id_: entry.at_ms})
        if await self.redis.exists(keys.buyers(PRODUCT)):
            await self.redis.copy(keys.buyers(PRODUCT), keys.prepared(keys.buyers(PRODUCT), epoch))

    @rule()
    def open_stale(self) -> None:
        """A rebuild that was overtaken changes nothing."""
        answer = self.run(open_books(self.redis, PRODUCT, 999, epoch=self.model.epoch))
        assert answer == b"stale"

    @invariant()
    def books_agree(self) -> None:
        if not hasattr(self, "model"):
            return
        model, books = self.model, self.run(read_books(self.redis, PRODUCT))
        books.check()
        assert (books.initial, books.available, books.held, books.sold) == (
            model.initial,
            model.available,
            model.held,
            model.sold,
        )
        assert (books.epoch, books.version) == (model.epoch, model.version)
        found = {id_: (e.state, e.epoch, e.version, e.quantity) for id_, e in books.entries.items()}
        assert found == model.entries
        assert books.buyers == {user: units for user, units in model.buyers.items() if units}


def test_no_sequence_of_calls_unbalances_the_ledger(redis_settings: Settings) -> None:
    """I1, R2, R3 and R5: after every step the real books equal the model's, and their sums are what the entries say."""

    class Here(Ledger):
        settings = redis_settings

    run_state_machine_as_test(Here, settings=hypothesis_settings(max_examples=60, stateful_step_count=40))
