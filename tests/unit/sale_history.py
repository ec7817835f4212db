"""A sale in memory that keeps its books right: actions in, the facts of every book out. What a test corrupts afterwards."""

import dataclasses
import random
from dataclasses import dataclass, field

from msgspec import UNSET

from consumers.audit.facts import AuditedOrder, Capture, PostgresBook, ProductFacts
from consumers.audit.log_book import LogBook
from sale.books.books import RedisBook
from sale.books.entry import HeldEntry
from schemas.events import AnyEvent, OrderPlaced, OrderStatusChanged, StockOpened
from schemas.ids import OrderId, UserId
from schemas.order_state import Entry, Status

PRICE_CENTS = 999
STARTED_MS = 1_800_000_000_000


@dataclass
class Sale:
    """One product. Every method does what the pipeline does, in all books at once."""

    initial: int = 100
    product_id: int = 1
    available: int = -1
    held: int = 0
    sold: int = 0
    epoch: int = 0
    version: int = 0
    now_ms: int = STARTED_MS
    rows: dict[str, AuditedOrder] = field(default_factory=dict)
    held_orders: list[str] = field(default_factory=list)
    captures: list[Capture] = field(default_factory=list)
    events: list[tuple[AnyEvent, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.available = self.initial
        self.rebuild()

    def rebuild(
        self, found: tuple[int, int] | None = None, announced_again: int | None = None, *, log_lost: bool = False
    ) -> None:
        """New books: a new epoch, whose versions start again. `found`: in Redis, epoch and version; older records lack it."""
        self.epoch, self.version = self.epoch + 1, 0
        self._publish(
            StockOpened(
                product_id=self.product_id,
                epoch=self.epoch,
                initial=self.initial,
                available=self.available,
                held=self.held,
                sold=self.sold,
                opened_at_ms=self.now_ms,
                reason="test",
                found_epoch=UNSET if found is None else found[0],
                found_version=UNSET if found is None else found[1],
                announced_again=UNSET if announced_again is None else announced_again,
                log_lost=log_lost,
            )
        )

    def buy(self, user: int, quantity: int = 1, key_hash: str | None = None) -> str | None:
        """The order's id, or None where it is sold out."""
        if quantity > self.available:
            return None
        order_id = f"{len(self.rows):032x}"
        self.available -= quantity
        self.held += quantity
        self.version += 1
        self._publish(
            OrderPlaced(
                order_id=order_id,
                product_id=self.product_id,
                user_id=user,
                quantity=quantity,
                unit_price_cents=PRICE_CENTS,
                currency="USD",
                placed_at_ms=self.now_ms,
                epoch=self.epoch,
                version=self.version,
                available=self.available,
                key_hash=key_hash or UNSET,
            )
        )
        self.rows[order_id] = AuditedOrder(
            id=order_id,
            user_id=user,
            quantity=quantity,
            unit_price_cents=PRICE_CENTS,
            currency="USD",
            status=Status.AWAITING_PAYMENT,
            epoch=self.epoch,
            placed_at_ms=self.now_ms,
            key_hash=key_hash,
        )
        self.held_orders.append(order_id)
        return order_id

    def end(self, order_id: str, status: Status) -> None:
        """The provider's answer, settled and announced."""
        row = self.rows[order_id]
        self.held_orders.remove(order_id)
        self.held -= row.quantity
        returned = 0
        if status is Status.CONFIRMED:
            self.sold += row.quantity
            self.captures.append(Capture(order_id, row.total_cents, row.currency))
        else:
            returned = row.quantity
            self.available += returned
        self.version += 1
        self.rows[order_id] = dataclasses.replace(row, status=status)
        self._publish(
            OrderStatusChanged(
                order_id=order_id,
                product_id=self.product_id,
                user_id=row.user_id,
                quantity=row.quantity,
                total_cents=row.total_cents,
                currency=row.currency,
                status=status,
                placed_at_ms=row.placed_at_ms,
                at_ms=self.now_ms,
                epoch=self.epoch,
                version=self.version,
                available=self.available,
                returned=returned,
            )
        )

    def lose(self, order_id: str) -> None:
        """Redis comes back without it."""
        self.held_orders.remove(order_id)
        self.held -= self.rows[order_id].quantity
        self.available += self.rows[order_id].quantity

    def fail(self, order_id: str, reason: str) -> None:
        """Uncharged; announced with its units where the books hold them, else without."""
        self.rows[order_id] = dataclasses.replace(self.rows[order_id], reason=reason)
        if order_id in self.held_orders:
            self.end(order_id, Status.FAILED)
            return
        row = self.rows[order_id] = dataclasses.replace(self.rows[order_id], status=Status.FAILED)
        self._publish(
            OrderStatusChanged(
                order_id=order_id,
                product_id=self.product_id,
                user_id=row.user_id,
                quantity=row.quantity,
                total_cents=row.total_cents,
                currency=row.currency,
                status=Status.FAILED,
                placed_at_ms=row.placed_at_ms,
                at_ms=self.now_ms,
            )
        )

    def end_all(self, status: Status = Status.CONFIRMED) -> None:
        for order_id in list(self.held_orders):
            self.end(order_id, status)

    def facts(self, shuffle: random.Random | None = None) -> ProductFacts:
        """Every book as it stands; `shuffle`: the log in another order, with copies, as partitions are read."""
        events = list(self.events)
        if shuffle is not None:
            events += shuffle.sample(events, len(events) // 3)
            shuffle.shuffle(events)
        log = LogBook(self.product_id)
        for event, appended_ms in events:
            log.add(event, appended_ms)
        live = [row for row in self.rows.values() if row.status not in (Status.FAILED, Status.PAYMENT_FAILED)]
        buyers: dict[int, int] = {}
        for row in live:
            buyers[row.user_id] = buyers.get(row.user_id, 0) + row.quantity
        return ProductFacts(
            product_id=self.product_id,
            redis=RedisBook(
                in_force=True,
                epoch=self.epoch,
                version=self.version,
                initial=self.initial,
                available=self.available,
                held=self.held,
                sold=self.sold,
                entries={order_id: self.entry(order_id) for order_id in self.held_orders},
                buyers=buyers,
            ),
            postgres=PostgresBook(
                self.initial, sum(row.quantity for row in live), self.epoch, list(self.rows.values())
            ),
            log=log,
            captures=list(self.captures),
        )

    def entry(self, order_id: str, state: Entry = Entry.HELD) -> HeldEntry:
        row = self.rows[order_id]
        return HeldEntry(
            order_id=OrderId(order_id),
            state=state,
            epoch=row.epoch,
            version=1,
            available=0,
            quantity=row.quantity,
            user_id=UserId(row.user_id),
            at_ms=row.placed_at_ms,
            placed_head=b"{",
        )

    def _publish(self, event: AnyEvent) -> None:
        self.now_ms += 10
        self.events.append((event, self.now_ms))
