"""The read model: orders in Redis for their owners, and the orders of a user that Postgres may not have yet.

`project.lua` writes it. Each step of an order is one letter and the milliseconds since placing ("q0;a13;c950"): Redis stores
a hash compactly (as a listpack) while no value has more than 64 bytes; otherwise it takes three times the memory.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from infra.redis.trips import CommandSource
from sale.books import keys
from schemas.ids import OrderId, ProductId, UserId
from schemas.order_state import TERMINAL, Status

LETTERS = {
    Status.QUEUED: "q",
    Status.PROCESSING: "r",
    Status.PENDING: "n",
    Status.AWAITING_PAYMENT: "a",
    Status.PROCESSING_PAYMENT: "y",
    Status.NEEDS_RECONCILIATION: "u",
    Status.CONFIRMED: "c",
    Status.PAYMENT_FAILED: "d",
    Status.FAILED: "f",
}
STATUSES = {letter: status.value for status, letter in LETTERS.items()}


def steps_text(steps: Iterable[tuple[Status, int]], placed_ms: int) -> str:
    """The text for statuses and their times (ms since the epoch), in order."""
    return ";".join(f"{LETTERS[status]}{at_ms - placed_ms}" for status, at_ms in steps)


def history(text: str, placed_ms: int) -> tuple[tuple[str, int], ...]:
    """Statuses and their first times (ms since the epoch), in order.

    An earlier release wrote full steps: "queued@1796099529126".
    """
    seen: dict[str, int] = {}
    for step in text.split(";"):
        status, at, at_ms = step.partition("@")
        if at:
            seen.setdefault(status, int(at_ms))
        else:
            seen.setdefault(STATUSES[step[0]], placed_ms + int(step[1:]))
    return tuple(seen.items())


@dataclass(frozen=True, slots=True)
class OrderView:
    """One order for its owner. Times are ms since the epoch."""

    id: OrderId
    user_id: UserId
    product_id: ProductId
    quantity: int
    price_cents: int  # of one unit
    status: Status
    created_at_ms: int
    updated_at_ms: int
    history: tuple[tuple[str, int], ...]

    @property
    def terminal(self) -> bool:
        return self.status in TERMINAL


class ReadModel:
    """Raises RedisError."""

    def __init__(self, source: CommandSource) -> None:
        self._source = source

    async def orders(self, ids: Sequence[OrderId]) -> list[OrderView]:
        """Those of these orders that the read model has."""
        found = await self._source.replies([("HGETALL", keys.order(id_)) for id_ in ids])
        return [
            _view(id_, dict(zip(flat[::2], flat[1::2], strict=True)))
            for id_, flat in zip(ids, found, strict=True)
            if flat
        ]

    async def unstored(self, user: UserId, before: OrderId | None, most: int) -> list[OrderId]:
        """The user's accepted orders that Postgres may not have yet, newest first, older than `before`."""
        newest = f"({before}" if before else "+"
        command = ("ZREVRANGEBYLEX", keys.unstored(user), newest, "-", "LIMIT", 0, most)
        [ids] = await self._source.replies([command])
        return [OrderId(id_.decode()) for id_ in ids]


def _view(order_id: OrderId, fields: dict[bytes, bytes]) -> OrderView:
    return OrderView(
        id=order_id,
        user_id=UserId(int(fields[b"user"])),
        product_id=ProductId(int(fields[b"product"])),
        quantity=int(fields[b"quantity"]),
        price_cents=int(fields[b"price"]),
        status=Status(fields[b"status"].decode()),
        created_at_ms=int(fields[b"placed"]),
        updated_at_ms=int(fields[b"updated"]),
        history=history(fields[b"steps"].decode(), int(fields[b"placed"])),
    )
