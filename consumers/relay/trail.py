"""Publishes operators' actions from their table as `sale.controlled`. The table is the source, the topic a copy.

At least once: a row is marked after the broker has acknowledged its record, so the next leader may publish it again, with
the same action_id. Without Kafka the copy is late, not the action.
"""

import asyncio
from dataclasses import dataclass, field

import asyncpg
from msgspec import UNSET

from infra.kafka.publisher import Publisher
from sale.tables.queries import SQL
from schemas.codec import encode
from schemas.events import SaleControlled
from schemas.topics import SALE_ACTIONS

POLL_INTERVAL_S = 1.0
MOST = 500  # rows per round


@dataclass(slots=True)
class Trail:
    """Publishes each row once, in the order of ids."""

    pool: asyncpg.Pool
    publisher: Publisher
    _sent: dict[int, "asyncio.Future[None]"] = field(default_factory=dict)

    async def run_once(self) -> None:
        """Publish new rows, and mark acknowledged ones. It does not wait for the broker. Raises the errors of Postgres."""
        ended = {id_: sent for id_, sent in self._sent.items() if sent.done()}
        published = [id_ for id_, sent in ended.items() if not sent.cancelled() and sent.exception() is None]
        if published:
            await self.pool.execute(SQL.mark_sale_actions_published, published)
        for id_ in ended:
            del self._sent[id_]
        for row in await self.pool.fetch(SQL.unpublished_sale_actions, MOST):
            if row["id"] not in self._sent:
                self._sent[row["id"]] = self._publish(row)

    def _publish(self, row: asyncpg.Record) -> "asyncio.Future[None]":
        event = SaleControlled(
            action_id=row["id"],
            product_id=row["product_id"],
            action=row["action"],
            units=UNSET if row["units"] is None else row["units"],
            who=row["who"],
            why=row["why"],
            at_ms=row["at_ms"],
            findings=tuple(row["findings"] or ()),
        )
        return self.publisher.publish(SALE_ACTIONS, str(event.product_id), encode(event))
