"""The Python face of the scripts: reserve, settle, project. Every call is one script, so every call is atomic.

Nothing here decides; the answers are typed and the callers' match statements are exhaustive.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UNSET

from infra.pace import Pace
from infra.redis.client import Redis
from infra.redis.pipeliner import Pipeliner
from sale.books import entry, key_record, keys
from sale.books.read_model import steps_text
from sale.books.run import present_run
from sale.books.scripts import SCRIPTS
from schemas.events import OrderStatusChanged
from schemas.ids import OrderId, ProductId, UserId
from schemas.order_state import RANK, TERMINAL, Entry

KEY_LIFETIME_MS = 24 * 3_600_000  # acceptances are remembered this long
FIRST_CHECK_MS = 2_000  # a gateway killed between reserving and publishing is noticed after this
NEXT_CHECK_MS = 2_000
NOTHING_SEEN = (0, 0)
# How long the read model shows a status that the log told. There is a row then, and Postgres answers afterwards. Who waited
# for an order's end has seen it within minutes; what ends within this time has to fit into memory at once.
ENDED_LIFETIME_MS = 10 * 60_000
UNENDED_LIFETIME_MS = 24 * 3_600_000
DECLINES_COUNTED_MS = 3_600_000  # from the first decline of a product on; then all of them are forgotten


class Reservation(msgspec.Struct, frozen=True):
    """One wish to buy. `hashed_key` is None where the order id itself is the key.

    `accepted_at_ms`: made again for an order whose reservation was lost with older books, also where the sale is paused or over.
    `most_declines`: a user with so many declined orders of the product within the hour is refused; 0: never.
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
    """Units were taken; `value` is the complete order.placed."""

    epoch: int
    version: int
    available: int
    at_ms: int
    value: bytes


@dataclass(frozen=True, slots=True)
class Known:
    """The key was accepted before, for this order and body."""

    order_id: OrderId
    same_body: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing was taken. `reason` is unverified, paused, not_open, closed, user_limit, declined, busy or sold_out."""

    reason: str
    epoch: int = 0
    version: int = 0
    opens_at_ms: int = 0
    wait_ms: int = 0


class Settlement(msgspec.Struct, frozen=True):
    """The units of a terminal order have been moved under this version."""

    epoch: int
    version: int
    available: int
    returned: int


class NotVerified(Exception):
    """The books are not in force for this Redis run: nothing was moved, new ones will be made."""


class SettledOtherwise(Exception):
    """An order was asked to settle both ways: the books disagree with Postgres."""

    def __init__(self, order_id: OrderId, answer: object) -> None:
        super().__init__(f"{order_id}: settle.lua answered {answer!r}")
        self.order_id = order_id


class Inventory:
    """All writes to a product's books outside a rebuild. `pace` is the Pipeliner's.

    Every call says how far it has seen the books go: whatever put older ones in their place, they are refused and closed.
    """

    def __init__(self, redis: Redis, pace: Pace | None = None) -> None:
        self.redis = redis
        self._scripts = Pipeliner(redis, SCRIPTS, pace)
        self._seen: dict[ProductId, tuple[int, int]] = {}  # newest epoch and version

    async def reserve(self, wish: Reservation) -> Held | Known | Refused:
        """Take units or say why not. Idempotent by key. Raises RedisError: then whether units were taken is unknown."""
        head = entry.placed_head(
            entry.PlacedHead(
                order_id=wish.order_id,
                product_id=wish.product_id,
                user_id=wish.user_id,
                quantity=wish.quantity,
                unit_price_cents=wish.unit_price_cents,
                currency=wish.currency,
                key_hash=wish.hashed_key or UNSET,
                redriven_from=wish.redriven_from or UNSET,
            )
        )
        order_key = keys.order(wish.order_id)
        product, hashed, user = wish.product_id, wish.hashed_key, wish.user_id
        reply = await self._scripts.call(
            "reserve",
            (
                keys.stock(product),
                keys.held(product),
                keys.due(product),
                keys.buyers(product),
                order_key,
                keys.key_record(user, hashed) if hashed else order_key,
                keys.unstored(user),
                keys.whole_key_record(user, hashed) if hashed else order_key,
                keys.declined(product),
            ),
            wish.order_id,
            wish.user_id,
            wish.quantity,
            wish.body,
            head,
            wish.unit_price_cents,
            wish.currency,
            KEY_LIFETIME_MS,
            FIRST_CHECK_MS,
            product,
            "" if wish.accepted_at_ms is None else wish.accepted_at_ms,
            *self._seen.get(product, NOTHING_SEEN),
            key_record.short(wish.order_id),
            wish.most_declines,
        )
        answer = _reserve_answer(wish, head, reply)
        if not isinstance(answer, Known):
            self._see(product, answer.epoch, answer.version)
        return answer

    async def settle(
        self, orders: Sequence[tuple[ProductId, OrderId, Entry]], declined: Collection[OrderId] = ()
    ) -> list[Settlement | None]:
        """Move the units of terminal orders to SOLD or RELEASED; None where no entry is left (announced before).

        Those of them whose payment was `declined` count against their users.

        Idempotent: the same version is given again. Raises NotVerified, SettledOtherwise or RedisError; some of the
        orders may then be settled, which asking again finds out.
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
                self._see(product, settled.epoch, settled.version)
        return settlements

    async def project(self, events: Sequence[OrderStatusChanged]) -> None:
        """Write statuses into the read model; delete the settled entries whose announcement these events are."""
        await self._scripts.call_many("project", [_projection(event) for event in events])

    async def entries(self, product: ProductId, order_ids: Sequence[OrderId]) -> dict[OrderId, entry.HeldEntry]:
        """The entries that exist. Read them before the rows: a row read later can only be further on."""
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
        """Put an operator's newest action in force (`rebuild.sale_arguments` of the row); False where no books are."""
        key, *arguments = sale
        return bool(await self._scripts.call("sale", (key,), *arguments) != b"unverified")

    def _see(self, product: ProductId, epoch: int, version: int) -> None:
        """Replies may come in another order than the scripts ran in."""
        self._seen[product] = max(self._seen.get(product, NOTHING_SEEN), (epoch, version))

    async def run(self) -> str:
        return await present_run(self.redis)


def _settle_keys(product: ProductId) -> tuple[str, ...]:
    return (keys.stock(product), keys.held(product), keys.due(product), keys.buyers(product), keys.declined(product))


def _reserve_answer(wish: Reservation, head: bytes, reply: list[Any]) -> Held | Known | Refused:
    match reply:
        case [b"held", epoch, version, available, now_ms]:
            return Held(epoch, version, available, now_ms, entry.placed_value(head, now_ms, epoch, version, available))
        case [b"known", record]:
            order_id, body = key_record.parse(record.decode())
            return Known(order_id, body == wish.body)
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
