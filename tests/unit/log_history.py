"""The log of a small sale for tests of what is made from it: eight units, orders confirmed, declined, retried and under way."""

from dataclasses import dataclass

from schemas.codec import VERSION_HEADER, encode
from schemas.events import AnyEvent, OrderPlaced, OrderStatusChanged, PaymentRequested, Step, StockOpened
from schemas.ids import new_order_id
from schemas.order_state import Status
from schemas.topics import ORDER_STATUS, ORDERS, PAYMENTS

NOON_MS = 1_795_348_800_000  # 2026-11-22T12:00:00Z
PRODUCT = 7


@dataclass(frozen=True)
class FakeRecord:
    """What aiokafka hands over."""

    topic: str
    offset: int
    value: bytes | None
    key: bytes | None = b"key"
    partition: int = 0
    timestamp: int = NOON_MS
    headers: tuple[tuple[str, bytes], ...] = (VERSION_HEADER,)


class History:
    """Writes the events of a product in order, with versions and stock as the scripts would draw them."""

    def __init__(self, initial: int) -> None:
        self.available = initial
        self.version = 0
        self.events: list[tuple[str, AnyEvent]] = []
        self.at_ms = NOON_MS
        opened = StockOpened(
            product_id=PRODUCT,
            epoch=1,
            initial=initial,
            available=initial,
            held=0,
            sold=0,
            opened_at_ms=NOON_MS,
            reason="test",
        )
        self.events.append((ORDERS.name, opened))

    def place(self, quantity: int, user: int = 1) -> OrderPlaced:
        self.at_ms += 100
        self.version += 1
        self.available -= quantity
        event = OrderPlaced(
            order_id=new_order_id(),
            product_id=PRODUCT,
            user_id=user,
            quantity=quantity,
            unit_price_cents=250,
            currency="USD",
            placed_at_ms=self.at_ms,
            epoch=1,
            version=self.version,
            available=self.available,
        )
        self.events.append((ORDERS.name, event))
        return event

    def request(self, placed: OrderPlaced) -> None:
        at_ms = placed.placed_at_ms + 10
        request = PaymentRequested(order_id=placed.order_id, product_id=PRODUCT, requested_at_ms=at_ms)
        self.events.append((PAYMENTS.name, request))
        steps = tuple(Step(s, at_ms) for s in (Status.PROCESSING, Status.PENDING, Status.AWAITING_PAYMENT))
        self.events.append((ORDER_STATUS.name, self._status(placed, Status.AWAITING_PAYMENT, at_ms, steps=steps)))

    def end(self, placed: OrderPlaced, status: Status) -> None:
        self.version += 1
        returned = 0 if status is Status.CONFIRMED else placed.quantity
        self.available += returned
        started, at_ms = placed.placed_at_ms + 30, placed.placed_at_ms + 730
        event = self._status(
            placed,
            status,
            at_ms,
            steps=(Step(Status.PROCESSING_PAYMENT, started), Step(status, at_ms)),
            charge_started_at_ms=started,
            charge_answered_at_ms=at_ms - 5,
            epoch=1,
            version=self.version,
            available=self.available,
            returned=returned,
        )
        self.events.append((ORDER_STATUS.name, event))

    def _status(self, placed: OrderPlaced, status: Status, at_ms: int, **more: object) -> OrderStatusChanged:
        return OrderStatusChanged(
            order_id=placed.order_id,
            product_id=PRODUCT,
            user_id=placed.user_id,
            quantity=placed.quantity,
            total_cents=placed.quantity * placed.unit_price_cents,
            currency=placed.currency,
            status=status,
            placed_at_ms=placed.placed_at_ms,
            at_ms=at_ms,
            **more,  # type: ignore[arg-type]  # fields of the event, named by this module
        )

    def records(self) -> list[FakeRecord]:
        return [
            FakeRecord(topic, n, encode(event), timestamp=NOON_MS + n) for n, (topic, event) in enumerate(self.events)
        ]


def a_small_sale() -> tuple[History, list[OrderPlaced]]:
    """Eight units: two orders confirmed (one published twice), one declined, one under way."""
    history = History(8)
    orders = [history.place(quantity, user=n) for n, quantity in enumerate((2, 3, 1, 2), start=1)]
    history.events.append((ORDERS.name, orders[0]))  # the relay sent it again
    for order in orders[:3]:
        history.request(order)
    history.end(orders[0], Status.CONFIRMED)
    history.end(orders[1], Status.PAYMENT_FAILED)
    history.end(orders[2], Status.CONFIRMED)
    return history, orders
