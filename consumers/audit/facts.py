"""The contents of each book as plain values. The readers or a simulation make them; the balance compares them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sale.books.books import RedisBook
from schemas.order_state import Status

from .log_book import LogBook

ScopedKey = tuple[int, str | None]  # user id and hash of the Idempotency-Key; None without a key


@dataclass(frozen=True, slots=True)
class AuditedOrder:
    """An order in Postgres."""

    id: str
    user_id: int
    quantity: int
    unit_price_cents: int
    currency: str
    status: Status
    epoch: int = 1
    placed_at_ms: int = 0
    key_hash: str | None = None
    reason: str | None = None  # why it failed or was declined
    created_at_ms: int = 0
    updated_at_ms: int = 0  # of an order that has ended: the time of its end

    @property
    def total_cents(self) -> int:
        return self.quantity * self.unit_price_cents


@dataclass(frozen=True, slots=True)
class PostgresBook:
    """A product in Postgres with its orders, from one snapshot."""

    initial: int
    taken: int
    epoch: int
    orders: Sequence[AuditedOrder] = ()
    per_user_limit: int | None = None
    closes_at_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Capture:
    """One movement of money as the provider recorded it."""

    order_id: str
    amount_cents: int
    currency: str


@dataclass(frozen=True, slots=True)
class ClientAnswers:
    """The log of a load generator: order ids that were accepted, that were refused, and whose outcome is unknown.

    Most refusals and lost answers name no order; (user, key hash) identifies those.
    """

    accepted: frozenset[str] = frozenset()
    unknown: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    unknown_keys: frozenset[ScopedKey] = frozenset()
    refused_keys: frozenset[ScopedKey] = frozenset()  # every answer was a refusal
    doubled_keys: Mapping[ScopedKey, frozenset[str]] = field(default_factory=dict)  # received more than one order id
    quantities: Mapping[str, frozenset[int]] = field(
        default_factory=dict
    )  # quantities of the accepted requests, by order id
    complaints: Sequence[str] = ()  # answers that break I11


@dataclass(frozen=True, slots=True)
class ProductFacts:
    """All books of one product. `redis` is None if Redis has no books of it."""

    product_id: int
    redis: RedisBook | None
    postgres: PostgresBook
    log: LogBook
    captures: Sequence[Capture] = ()
