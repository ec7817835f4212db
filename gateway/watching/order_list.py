"""GET /api/orders: a user's own orders, newest first, page by page.

Postgres has the stored orders; Redis (`unstored`) has accepted orders that are not stored yet. Redis is read first: an order
that is stored in between is in both answers and shown once, and none is missing.
"""

import asyncpg
from aiohttp import web

from gateway.accounts.identity import Identity
from gateway.http.bodies import QUERY_TIMEOUT_S, answer
from gateway.http.problems import Problem
from gateway.watching.order_status import OrderStatus, from_row
from infra.postgres.pool import UNAVAILABLE
from infra.redis.client import RedisError
from sale.books.read_model import OrderView, ReadModel
from sale.tables.queries import SQL
from schemas.ids import OrderId, UserId, parse_order_id

PAGE_DEFAULT, PAGE_MAX = 20, 100


class OrderList:
    def __init__(self, identity: Identity, status: OrderStatus, read_model: ReadModel, pool: asyncpg.Pool) -> None:
        self._identity = identity
        self._status = status
        self._read_model = read_model
        self._pool = pool

    async def list_own(self, request: web.Request) -> web.Response:
        """`next` is the cursor of the next page; `newest` shows a client that pages on whether newer orders have come."""
        user = self._identity.user_of(request)
        limit, cursor = _page(request)
        try:
            views = await self._older_than(user.id, cursor, limit + 1)
            newest = await self._newest(user.id) if cursor else next((view.id for view in views), None)
        except UNAVAILABLE:
            raise Problem("unavailable") from None
        page, more = views[:limit], len(views) > limit
        orders = [await self._status.public(view) for view in page]
        return answer({"orders": orders, "next": page[-1].id if more else None, "newest": newest})

    async def _older_than(self, user: UserId, cursor: OrderId | None, most: int) -> list[OrderView]:
        """Newest first. Ids are ordered by time, in Redis and in Postgres."""
        unstored = await self._unstored(user, cursor, most)
        rows = await self._pool.fetch(SQL.orders_of_user, user, cursor, most, timeout=QUERY_TIMEOUT_S)
        stored = {view.id: view for view in map(from_row, rows)}
        shown = {view.id: view for view in await self._shown([id_ for id_ in unstored if id_ not in stored])}
        return sorted((shown | stored).values(), key=lambda view: view.id, reverse=True)[:most]

    async def _newest(self, user: UserId) -> OrderId | None:
        unstored = await self._unstored(user, None, 1)
        stored = await self._pool.fetch(SQL.orders_of_user, user, None, 1, timeout=QUERY_TIMEOUT_S)
        return max((*unstored, *(OrderId(row["id"]) for row in stored)), default=None)

    async def _unstored(self, user: UserId, cursor: OrderId | None, most: int) -> list[OrderId]:
        """Empty without Redis: then only the stored orders are shown."""
        try:
            return await self._read_model.unstored(user, cursor, most)
        except RedisError:
            return []

    async def _shown(self, ids: list[OrderId]) -> list[OrderView]:
        """The read models of those of these orders that have one."""
        try:
            return await self._read_model.orders(ids)
        except RedisError:
            return []


def _page(request: web.Request) -> tuple[int, OrderId | None]:
    limit, cursor = request.query.get("limit", str(PAGE_DEFAULT)), request.query.get("cursor")
    if not (limit.isascii() and limit.isdecimal() and len(limit) <= 3 and 1 <= int(limit) <= PAGE_MAX):
        raise Problem("invalid_request", "limit must be a number from 1 to 100.")
    after = None if cursor is None else parse_order_id(cursor)
    if cursor is not None and after is None:
        raise Problem("invalid_request", "cursor must be the `next` of the previous page.")
    return int(limit), after
