"""Calls the scripts: reserve, settle, project and others. Each call is one script, so it is atomic.

There are no decisions here: the answers are typed, and the callers match them exhaustively.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UNSET

from infra.pace import Pace
from infra.redis.client import Redis
from infra.redis.pipeliner import Pipeliner
from infra.redis.trips import Argument
from sale.books import entry, key_record, keys
from sale.books.read_model import steps_text
from sale.books.run import present_run
from sale.books.scripts import SCRIPTS
from schemas.events import OrderStatusChanged
from schemas.ids import OrderId, ProductId, UserId
from schemas.order_state import RANK, TERMINAL, Entry

KEY_LIFETIME_MS = 24 * 3_600_000  # how long a key names its order
FIRST_CHECK_MS = 2_000  # after this the relay notices a gateway that died between reserving and publishing
NEXT_CHECK_MS = 2_000
NOTHING_SEEN = (0, 0)
# How long the read model shows a terminal status from the log. Postgres has the row and answers afterwards. Clients that wait
# see the end within minutes, and all orders that end within this time must fit into memory at once.
ENDED_LIFETIME_MS = 10 * 60_000
UNENDED_LIFETIME_MS = 24 * 3_600_000
DECLINES_COUNTED_MS = 3_600_000  # from the first decline for a product; then all of them are dropped


class Reservation(msgspec.Struct, frozen=True):
    """A request for units. `hashed_key` is None if the order id itself is the key.

    `accepted_at_ms`: set to reserve again for an order that was lost with older books; then pause and end do not matter.
    `most_declines`: a user with this many declined orders of the product within an hour is refused; 0: never.
    """

    order_id: OrderId
    user_id: UserId
    product_id: ProductId
    quantity: int
    unit_price_cents: int
    currency: str
    hashed_key: str | None = None
    redriven_from: OrderId | None = None
    accepted_at_ms: int | None = None
    most_declines: int = 0

    @property
    def body(self) -> str:
        return key_record.body(self.product_id, self.quantity)


class Held(msgspec.Struct, frozen=True):
    """The units are reserved; `value` is the complete order.placed."""

    epoch: int
    version: int
    available: int
    at_ms: int
    value: bytes


@dataclass(frozen=True, slots=True)
class Known:
    """The key was accepted before, for this order; `same_body` says whether with the same body."""

    order_id: OrderId
    same_body: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """No units are reserved. `reason`: unverified, paused, not_open, closed, user_limit, declined, busy or sold_out."""

    reason: str
    epoch: int = 0
    version: int = 0
    opens_at_ms: int = 0
    wait_ms: int = 0


class Settlement(msgspec.Struct, frozen=True):
    """The units of a terminal order were moved with this version."""

    epoch: int
    version: int
    available: int
    returned: int


class NotVerified(Exception):
    """The books are not in force for this Redis run. No units moved; the books will be rebuilt."""


class SettledOtherwise(Exception):
    """The order was settled with the opposite result before: the books disagree with Postgres."""

    def __init__(self, order_id: OrderId, answer: object) -> None:
        super().__init__(f"{order_id}: settle.lua answered {answer!r}")
        self.order_id = order_id


class Inventory:
    """All writes to a product's books except those of a rebuild. `pace` is for the Pipeliner.

    Every call sends the newest epoch and version that this process has seen. Older books are refused and closed, so that an
    old copy of Redis cannot be used.
    """

    def __init__(self, redis: Redis, pace: Pace | None = None) -> None:
        self.redis = redis
        self._scripts = Pipeliner(redis, SCRIPTS, pace)
        self._seen: dict[ProductId, tuple[int, int]] = {}  # newest epoch and version

    async def reserve(self, reservation: Reservation) -> Held | Known | Refused:
        """Reserve units, or return why not. Idempotent by key. After RedisError it is unknown whether units were reserved."""
        product, head = reservation.product_id, placed_head_for(reservation)
        keys_of, arguments = reserve_call(reservation, head, self._seen.get(product, NOTHING_SEEN))
        reply = await self._scripts.call("reserve", keys_of, *arguments)
        answer = _reserve_answer(reservation, head, reply)
        if not isinstance(answer, Known):
            self._record_seen(product, answer.epoch, answer.version)
        return answer

    async def settle(
        self, orders: Sequence[tuple[ProductId, OrderId, Entry]], declined: Collection[OrderId] = ()
    ) -> list[Settlement | None]:
        """Move the units of terminal orders to SOLD or RELEASED; None for an order without an entry (announced before).

        Orders with a `declined` payment count against their users.

        Idempotent: a repetition returns the same version. Raises NotVerified, SettledOtherwise or RedisError; then some of
        the orders may be settled, and a repetition finds out which.
        """
        replies = await self._scripts.call_many(
            "settle",
            [
                (
                    _settle_keys(product),
                    (
                        order_id,
                        entry.LETTERS[outcome],
                        NEXT_CHECK_MS,
                        *self._seen.get(product, NOTHING_SEEN),
                        DECLINES_COUNTED_MS if order_id in declined else "",
                    ),
                )
                for product, order_id, outcome in orders
            ],
        )
        settlements = [_settle_answer(reply, order_id) for reply, (_, order_id, _) in zip(replies, orders, strict=True)]
        for settled, (product, *_) in zip(settlements, orders, strict=True):
            if settled is not None:
                self._record_seen(product, settled.epoch, settled.version)
        return settlements

    async def project(self, events: Sequence[OrderStatusChanged]) -> None:
        """Write statuses into the read model, and delete the settled entries that these events announce."""
        await self._scripts.call_many("project", [_projection(event) for event in events])

    async def entries(self, product: ProductId, order_ids: Sequence[OrderId]) -> dict[OrderId, entry.HeldEntry]:
        """The entries that exist. Read them before the rows: a row that is read later can only be further on."""
        if not order_ids:
            return {}
        lines = await self.redis.hmget(keys.held(product), list(order_ids))
        return {
            id_: entry.parse(id_, line if isinstance(line, bytes) else line.encode())
            for id_, line in zip(order_ids, lines, strict=True)
            if line is not None
        }

    async def close(self, product: ProductId) -> None:
        """Refuse every script on this product until its books are rebuilt."""
        await self._scripts.call("close", (keys.stock(product),), "")

    async def control(self, sale: tuple[str, ...]) -> bool:
        """Put an operator's newest action in force (`rebuild.sale_arguments` of the row). False without books in force."""
        key, *arguments = sale
        return bool(await self._scripts.call("sale", (key,), *arguments) != b"unverified")

    def _record_seen(self, product: ProductId, epoch: int, version: int) -> None:
        """Replies may arrive in another order than the scripts ran."""
        self._seen[product] = max(self._seen.get(product, NOTHING_SEEN), (epoch, version))

    async def run(self) -> str:
        return await present_run(self.redis)


def reserve_call(
    reservation: Reservation, head: bytes, seen: tuple[int, int] = NOTHING_SEEN
) -> tuple[tuple[str, ...], tuple[Argument, ...]]:
    """KEYS and ARGV of reserve.lua. `head`: from `placed_head_for`."""
    return _reserve_keys(reservation), (
        reservation.order_id,
        reservation.user_id,
        reservation.quantity,
        reservation.body,
        head,
        reservation.unit_price_cents,
        reservation.currency,
        KEY_LIFETIME_MS,
        FIRST_CHECK_MS,
        reservation.product_id,
        "" if reservation.accepted_at_ms is None else reservation.accepted_at_ms,
        *seen,
        key_record.short(reservation.order_id),
        reservation.most_declines,
    )


def _settle_keys(product: ProductId) -> tuple[str, ...]:
    return (keys.stock(product), keys.held(product), keys.due(product), keys.buyers(product), keys.declined(product))


def placed_head_for(reservation: Reservation) -> bytes:
    return entry.placed_head(
        entry.PlacedHead(
            order_id=reservation.order_id,
            product_id=reservation.product_id,
            user_id=reservation.user_id,
            quantity=reservation.quantity,
            unit_price_cents=reservation.unit_price_cents,
            currency=reservation.currency,
            key_hash=reservation.hashed_key or UNSET,
            redriven_from=reservation.redriven_from or UNSET,
        )
    )


def _reserve_keys(reservation: Reservation) -> tuple[str, ...]:
    """KEYS of reserve.lua, in its order. Without an idempotency key the order's key stands in."""
    order_key = keys.order(reservation.order_id)
    product, hashed, user = reservation.product_id, reservation.hashed_key, reservation.user_id
    return (
        keys.stock(product),
        keys.held(product),
        keys.due(product),
        keys.buyers(product),
        order_key,
        keys.key_record(user, hashed) if hashed else order_key,
        keys.unstored(user),
        keys.whole_key_record(user, hashed) if hashed else order_key,
        keys.declined(product),
    )


def _reserve_answer(reservation: Reservation, head: bytes, reply: list[Any]) -> Held | Known | Refused:
    match reply:
        case [b"held", epoch, version, available, now_ms]:
            return Held(epoch, version, available, now_ms, entry.placed_value(head, now_ms, epoch, version, available))
        case [b"known", record]:
            order_id, body = key_record.parse(record.decode())
            return Known(order_id, body == reservation.body)
        case [b"sold_out", epoch, version]:
            return Refused("sold_out", epoch, version)
        case [b"not_open", opens_at_ms]:
            return Refused("not_open", opens_at_ms=opens_at_ms)
        case [b"declined", wait_ms]:
            return Refused("declined", wait_ms=wait_ms)
        case [reason, *_]:
            return Refused(reason.decode())
        case _:
            raise ValueError(f"reserve.lua answered {reply!r}")


def _settle_answer(reply: list[Any], order_id: OrderId) -> Settlement | None:
    match reply:
        case [b"settled", epoch, version, available, returned]:
            return Settlement(epoch, version, available, returned)
        case [b"none"]:
            return None
        case [b"unverified"]:
            raise NotVerified
        case _:
            raise SettledOtherwise(order_id, reply)


def _projection(event: OrderStatusChanged) -> tuple[tuple[str, ...], tuple[str | int, ...]]:
    product = ProductId(event.product_id)
    terminal = event.status in TERMINAL
    return (
        (
            keys.order(OrderId(event.order_id)),
            keys.held(product),
            keys.due(product),
            keys.unstored(UserId(event.user_id)),
        ),
        (
            event.order_id,
            event.status,
            RANK[event.status],
            event.at_ms,
            steps_text(((step.status, step.at_ms) for step in event.steps), event.placed_at_ms),
            f"{event.epoch} {event.version}" if terminal and event.epoch and event.version else "",
            ENDED_LIFETIME_MS if terminal else UNENDED_LIFETIME_MS,
            event.user_id,
            event.product_id,
            event.quantity,
            event.total_cents // event.quantity,
            event.currency,
            event.placed_at_ms,
        ),
    )
