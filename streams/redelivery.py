"""Finishes orders whose record was read before; `advance` decides the next step of each.

The first reader may have died after any step. So the entry and the row are read again, and the missing steps are done.
"""

from collections.abc import Sequence
from typing import assert_never

from infra.postgres.pool import UNAVAILABLE
from infra.waits import retry_until_ok
from sale.books.entry import HeldEntry
from sale.orders import OrderRow, read_rows
from sale.settlement import REDIS_ERRORS
from schemas.events import OrderPlaced
from schemas.ids import OrderId, ProductId
from schemas.order_state import Entry, Next, Status, advance
from streams.app import Resources
from streams.placing import Placing


class Redelivery:
    """Needs Redis, and waits for it. So it works in a lane, where only its own product waits."""

    def __init__(self, resources: Resources, placing: Placing) -> None:
        self._pool = resources.pool
        self._inventory = resources.inventory
        self._desk = resources.desk
        self._placing = placing

    async def finish(self, events: Sequence[OrderPlaced]) -> None:
        """Do the next steps of these orders, which all have a row."""
        if not events:
            return
        entries = await self._entries(events)
        ids = [OrderId(event.order_id) for event in events]
        rows = await retry_until_ok("postgres", UNAVAILABLE, read_rows, self._pool, ids)
        ended: list[OrderRow] = []
        unheld: list[OrderRow] = []
        unpaid: list[OrderPlaced] = []
        for event in events:
            row = rows[OrderId(event.order_id)]
            match advance(row.status, entries[row.id].state if row.id in entries else Entry.NONE):
                case Next.PAY | Next.REBUILD:
                    # Without an entry the relay decides whether the books are wrong; requesting payment is right anyway.
                    unpaid.append(event)
                case Next.SETTLE | Next.ANNOUNCE:
                    ended.append(row)
                case Next.DONE:
                    if row.status is Status.FAILED:
                        unheld.append(row)  # never held: its first reader may have died before the announcement
                case Next.RECONCILE:
                    pass  # the reconciler works on it
                case Next.PLACE | Next.RESERVE_AGAIN:
                    raise AssertionError(f"order {row.id} has a row")
                case never:
                    assert_never(never)
        await self._desk.announce(ended)
        await self._desk.announce_unheld(unheld)
        await self._placing.request_payment(unpaid)

    async def _entries(self, events: Sequence[OrderPlaced]) -> dict[OrderId, HeldEntry]:
        """Read them before the rows: a row that is read later can only be further on."""
        entries: dict[OrderId, HeldEntry] = {}
        for product in {event.product_id for event in events}:
            ids = [OrderId(event.order_id) for event in events if event.product_id == product]
            entries |= await retry_until_ok("redis", REDIS_ERRORS, self._inventory.entries, ProductId(product), ids)
        return entries
