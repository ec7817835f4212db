"""Publishes parked orders again once the books of their product are in force; the order stage then reads them again.

At least once: a row is deleted after the broker has acknowledged its record. From then on the log vouches for the order. If
the books are closed again, the order stage parks it in a new row.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

import asyncpg

from infra.kafka.publisher import Publisher
from infra.logs import get_logger
from sale.tables.queries import SQL
from schemas.codec import decode
from schemas.events import OrderPlaced
from schemas.ids import ProductId
from schemas.topics import ORDERS

POLL_INTERVAL_S = 0.5
MOST = 250  # rows per product and round

log = get_logger()


@dataclass(slots=True)
class Parked:
    """Publishes each row once."""

    pool: asyncpg.Pool
    publisher: Publisher
    _sent: dict[int, "asyncio.Future[None]"] = field(default_factory=dict)

    async def run_once(self, in_force: Iterable[ProductId]) -> None:
        """Publish new rows, and delete acknowledged ones. It does not wait for the broker. Raises the errors of Postgres."""
        ended = {id_: sent for id_, sent in self._sent.items() if sent.done()}
        published = [id_ for id_, sent in ended.items() if not sent.cancelled() and sent.exception() is None]
        if published:
            await self.pool.execute(SQL.unpark_orders, published)
        for id_ in ended:
            del self._sent[id_]
        rows = await self.pool.fetch(SQL.parked_to_send, list(in_force), MOST)
        new = [row for row in rows if row["id"] not in self._sent]
        for row in new:
            self._sent[row["id"]] = self._publish(row["record"])
        if new:
            log.info("parked orders sent on", orders=len(new))

    def _publish(self, record: bytes) -> "asyncio.Future[None]":
        return self.publisher.publish(ORDERS, _order_of(record), record)


def _order_of(record: bytes) -> str:
    event = decode(record)
    assert isinstance(event, OrderPlaced)  # only order.placed is parked
    return event.order_id
