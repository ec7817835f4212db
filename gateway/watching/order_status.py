"""Orders for their owners: from the read model in Redis, else from Postgres.

The answer is 404 only if Postgres has no such order and Redis holds the books of this run. Another user's order gets the same
404, byte for byte except for the request's id. Until both have answered it is 503: a live order is never denied.
"""

import asyncio

import asyncpg
from aiohttp import web

from gateway.accounts.identity import Identity
from gateway.buying.catalogue import Catalogue
from gateway.http.bodies import QUERY_TIMEOUT_S, answer, iso_ms
from gateway.http.problems import Problem
from gateway.http.shares import Shares, SharesFull
from gateway.watching.order_updates import News, OrderUpdates
from infra.postgres.pool import UNAVAILABLE
from infra.redis.client import RedisError
from infra.redis.pipeliner import Pipeliner
from sale.books.read_model import OrderView, ReadModel
from sale.books.run import all_verified
from sale.tables.queries import SQL
from schemas.clock import to_ms
from schemas.ids import OrderId, ProductId, UserId, parse_order_id
from schemas.money import to_decimal
from schemas.order_state import Status

WAIT_MAX_S = 25.0
WAITS_MAX = 10_000  # per worker
POLL_INTERVAL_S = 2.0  # without news from the log
FIRST_POLL_S = 0.03  # after news: the projector is about to write the status, or just has


class OrderReader:
    """Reads one order, for the status route and the order stream."""

    def __init__(self, reads: Pipeliner, pool: asyncpg.Pool) -> None:
        self._reads = reads
        self._read_model = ReadModel(reads)
        self._pool = pool

    async def of_owner(self, text: str, owner: UserId) -> OrderView:
        """Raises Problem 404 or 503."""
        order_id = parse_order_id(text)
        if order_id is None:
            raise Problem("not_found")
        view = await self._find(order_id)
        if view.user_id != owner:
            raise Problem("not_found")
        return view

    async def reread(self, view: OrderView) -> OrderView:
        """The order as it is now; if no store answers, as it was, so that a short fault does not end a wait."""
        try:
            return await self.of_owner(view.id, view.user_id)
        except Problem:
            return view

    async def _find(self, order_id: OrderId) -> OrderView:
        try:
            shown = await self._read_model.orders([order_id])
        except RedisError:
            shown = []
        if shown:
            return shown[0]
        try:
            rows = await self._pool.fetch(SQL.orders_by_id, [order_id], timeout=QUERY_TIMEOUT_S)
        except UNAVAILABLE:
            raise Problem("unavailable", "The order could not be looked up.") from None
        if rows:
            return from_row(rows[0])
        if not await self._books_are_of_this_run():
            raise Problem("unavailable", "The order could not be looked up.")
        raise Problem("not_found")

    async def _books_are_of_this_run(self) -> bool:
        try:
            return await all_verified(self._reads)
        except RedisError:
            return False


class OrderStatus:
    def __init__(
        self,
        identity: Identity,
        catalogue: Catalogue,
        reader: OrderReader,
        updates: OrderUpdates,
    ) -> None:
        self._identity = identity
        self._catalogue = catalogue
        self._reader = reader
        self._updates = updates
        self._waits = Shares(WAITS_MAX)

    async def show(self, request: web.Request) -> web.Response:
        """The present state. With `?wait=` it answers when the order is terminal, at the latest after that many seconds."""
        user = self._identity.user_of(request)
        wait_s = _wait_s(request)
        text = request.match_info["id"]
        view = await self._reader.of_owner(text, user.id)
        if wait_s and not view.terminal:
            view = await self._wait_until_terminal(view, wait_s)
        return answer({"success": True, **await self.public(view)})

    async def _wait_until_terminal(self, view: OrderView, wait_s: float) -> OrderView:
        """The order when it is terminal; sooner if another wait takes this one's place, and at once if there is no place."""
        with self._updates.listen(view.id) as news:
            try:
                with self._waits.hold(view.user_id, news.leave):
                    return await self._follow(view, news, wait_s)
            except SharesFull:
                return view

    async def _follow(self, view: OrderView, news: News, wait_s: float) -> OrderView:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        soon_s = FIRST_POLL_S
        while not view.terminal:
            left_s = deadline - loop.time()
            if left_s <= 0 or news.left or self._updates.closed:
                break
            if news.terminal:
                await asyncio.sleep(min(left_s, soon_s))
                soon_s = min(soon_s * 2, POLL_INTERVAL_S)
            else:
                await news.wait(min(left_s, POLL_INTERVAL_S))
            view = await self._reader.reread(view)
        return view

    async def public(self, view: OrderView) -> dict[str, object]:
        try:
            name: str | None = (await self._catalogue.find(view.product_id)).name
        except Problem:  # the product's name is not available now; the order itself is known
            name = None
        return {
            "orderId": view.id,
            "userId": view.user_id,
            "status": view.status,
            "quantity": view.quantity,
            "totalPrice": to_decimal(view.price_cents * view.quantity),
            "product": {"id": view.product_id, "name": name, "price": to_decimal(view.price_cents)},
            "createdAt": iso_ms(view.created_at_ms),
            "updatedAt": iso_ms(view.updated_at_ms),
            "history": [{"status": status, "at": iso_ms(at)} for status, at in view.history],
        }


def _wait_s(request: web.Request) -> float:
    text = request.query.get("wait")
    if text is None:
        return 0.0
    if not (text.isascii() and text.replace(".", "", 1).isdecimal() and len(text) <= 8) or float(text) > WAIT_MAX_S:
        raise Problem("invalid_request", "wait must be a number of seconds from 0 to 25.")
    return float(text)


def from_row(row: asyncpg.Record) -> OrderView:
    """Postgres has no steps: the history has only the time of placing and the time of the present status."""
    updated_at_ms = to_ms(row["updated_at"])
    return OrderView(
        id=OrderId(row["id"]),
        user_id=UserId(row["user_id"]),
        product_id=ProductId(row["product_id"]),
        quantity=row["quantity"],
        price_cents=row["unit_price_cents"],
        status=Status(row["status"]),
        created_at_ms=row["placed_at_ms"],
        updated_at_ms=updated_at_ms,
        history=(("queued", row["placed_at_ms"]), (row["status"], updated_at_ms)),
    )
