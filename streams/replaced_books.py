"""Handles reservations without a row whose books were replaced by a rebuild: they are placed, reserved again, parked or failed.

An entry in the books in force vouches for the order. Without an entry, it is reserved again with the same id and the same
script as any purchase. If the sale has no unit left, the order ends as `failed`, uncharged.
"""

from collections.abc import Sequence
from enum import Enum, auto

from msgspec import UNSET

from infra.logs import get_logger
from infra.postgres.pool import UNAVAILABLE
from infra.waits import retry_until_ok
from sale.books.entry import HeldEntry
from sale.books.inventory import Held, Known, Refused, Reservation
from sale.orders import read_rows
from sale.settlement import REDIS_ERRORS
from sale.tables.queries import SQL
from schemas.events import OrderPlaced
from schemas.ids import OrderId, ProductId, UserId
from schemas.order_state import Entry, Next, advance
from schemas.topics import ORDERS
from streams.app import Resources
from streams.placing import Placement, Placing, orders_placed
from streams.redelivery import Redelivery

LOST = "its reservation was lost with the books"
log = get_logger()


class _Fate(Enum):
    """The result for one reservation of replaced books."""

    VOUCHED = auto()  # the books in force hold its units: place it
    HAS_ROW = auto()  # read late, or just failed: finish it like any redelivery
    SENT_AGAIN = auto()  # a new record under the present epoch is on the log
    PARKED = auto()  # the product's books are not in force


class ReplacedBooks:
    """Works in a lane: all placements of one call are of one product."""

    def __init__(self, resources: Resources, placing: Placing, redelivery: Redelivery) -> None:
        self._pool = resources.pool
        self._inventory = resources.inventory
        self._publisher = resources.publisher
        self._placing = placing
        self._redelivery = redelivery

    async def finish(self, placements: Sequence[Placement]) -> None:
        """When it returns, every order has a row, has a new record on the log, or is parked."""
        fates: dict[_Fate, list[Placement]] = {fate: [] for fate in _Fate}
        for placement in placements:
            fates[await self._fate_of(placement.event)].append(placement)
        placed = await self._placing.place(fates[_Fate.VOUCHED], vouched=True)
        assert not placed.stale  # a vouched order is never stale
        await self._redelivery.finish([event for _, event in fates[_Fate.HAS_ROW] + placed.known])
        await self._park(fates[_Fate.PARKED])

    async def _fate_of(self, event: OrderPlaced) -> _Fate:
        entry = await self._entry(event)
        if advance(None, entry.state if entry else Entry.NONE, current_epoch=False) is Next.RESERVE_AGAIN:
            return await self._reserve_again(event)
        assert entry is not None
        if entry.state is Entry.HELD and (entry.epoch, entry.version) > (event.epoch, event.version):
            # An earlier reader of this record reserved again, but may have died before publishing: the log has no gaps.
            await self._publisher.publish(ORDERS, event.order_id, entry.placed_value)
            return _Fate.SENT_AGAIN
        return _Fate.VOUCHED

    async def _reserve_again(self, event: OrderPlaced) -> _Fate:
        order_id = OrderId(event.order_id)
        if await retry_until_ok("postgres", UNAVAILABLE, read_rows, self._pool, [order_id]):
            return _Fate.HAS_ROW  # it may have ended since, and Redis may have dropped it and its key
        match await retry_until_ok("redis", REDIS_ERRORS, self._inventory.reserve, reservation_of(event)):
            case Held(value=value):
                await self._publisher.publish(
                    ORDERS, event.order_id, value
                )  # it is read again here, under the new epoch
                return _Fate.SENT_AGAIN
            case Known(order_id=other) if other != order_id:
                return await self._fail(event, f"its key was used again for order {other} after the books were lost")
            case Known() if await self._entry(event):
                return _Fate.VOUCHED  # a rebuild has added it since
            case Known():
                return await self._fail(event, LOST, key_lost=False)
            case Refused(reason="unverified"):
                return _Fate.PARKED
            case Refused(reason=reason):
                return await self._fail(event, f"{LOST}, and then: {reason}")

    async def _fail(self, event: OrderPlaced, reason: str, *, key_lost: bool = True) -> _Fate:
        """Write the row first, so that a second reading of the record announces the end again.

        The row may come from a new owner of the partition, which read the same record and found a unit for the order.
        """
        await self._placing.record_failed(event, reason, key_lost=key_lost)
        return _Fate.HAS_ROW

    async def _entry(self, event: OrderPlaced) -> HeldEntry | None:
        ids = [OrderId(event.order_id)]
        found = await retry_until_ok("redis", REDIS_ERRORS, self._inventory.entries, ProductId(event.product_id), ids)
        return found.get(ids[0])

    async def _park(self, placements: Sequence[Placement]) -> None:
        """Park them in Postgres, where the next rebuild reads them. The relay sends them again once the books are in force."""
        if not placements:
            return
        product = placements[0].event.product_id
        values = [record.record.message.value for record, _ in placements]
        await retry_until_ok("postgres", UNAVAILABLE, self._pool.execute, SQL.park_orders, product, values)
        orders_placed.labels("parked").inc(len(placements))
        log.warning("parked until the books are in force", product=product, orders=len(placements))


def reservation_of(event: OrderPlaced) -> Reservation:
    return Reservation(
        order_id=OrderId(event.order_id),
        user_id=UserId(event.user_id),
        product_id=ProductId(event.product_id),
        quantity=event.quantity,
        unit_price_cents=event.unit_price_cents,
        currency=event.currency,
        hashed_key=None if event.key_hash is UNSET else event.key_hash,
        redriven_from=None if event.redriven_from is UNSET else OrderId(event.redriven_from),
        accepted_at_ms=event.placed_at_ms,
    )
