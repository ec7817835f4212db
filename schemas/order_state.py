"""The states of an order, and the one table that decides its next step. Pure, no I/O."""

from enum import Enum, StrEnum


class Status(StrEnum):
    """The status that an order's owner sees. Postgres stores only `STORED`; the others are in the read model and in events."""

    QUEUED = "queued"
    PROCESSING = "processing"
    PENDING = "pending"
    AWAITING_PAYMENT = "awaiting_payment"
    PROCESSING_PAYMENT = "processing_payment"
    NEEDS_RECONCILIATION = "needs_reconciliation"
    CONFIRMED = "confirmed"
    PAYMENT_FAILED = "payment_failed"
    FAILED = "failed"


TERMINAL = frozenset({Status.CONFIRMED, Status.PAYMENT_FAILED, Status.FAILED})
UNPAID = frozenset({Status.AWAITING_PAYMENT, Status.NEEDS_RECONCILIATION})
STORED = UNPAID | TERMINAL

# The three terminal states share one rank: none of them replaces another.
RANK: dict[Status, int] = {
    Status.QUEUED: 10,
    Status.PROCESSING: 20,
    Status.PENDING: 30,
    Status.AWAITING_PAYMENT: 40,
    Status.PROCESSING_PAYMENT: 50,
    Status.NEEDS_RECONCILIATION: 60,
    Status.CONFIRMED: 100,
    Status.PAYMENT_FAILED: 100,
    Status.FAILED: 100,
}


def replaces(new: Status, old: Status) -> bool:
    """Whether a reader replaces `old` by `new`: only by a higher rank. So a terminal status stays in any order of events."""
    return RANK[new] > RANK[old]


class Entry(StrEnum):
    """The entry of an order in Redis: none, units held, or units moved but not yet announced."""

    NONE = "none"
    HELD = "held"
    SOLD = "sold"
    RELEASED = "released"


SETTLED = frozenset({Entry.SOLD, Entry.RELEASED})


def outcome_of(status: Status) -> Entry:
    """Where the units of a terminal order go: to the buyer, or back on sale."""
    return Entry.SOLD if status is Status.CONFIRMED else Entry.RELEASED


class Next(Enum):
    """The next step of an order."""

    PLACE = "publish order.placed, or insert the row where order.placed has just been read"
    RESERVE_AGAIN = "reserve again by id through the same script, or fail the order uncharged"
    PAY = "publish payment.requested, or charge where payment.requested has just been read"
    REBUILD = "close the product and rebuild its books"
    RECONCILE = "leave it to the reconciler"
    SETTLE = "move the units (settle.lua), then announce"
    ANNOUNCE = "publish the terminal status with the version settling drew"
    DONE = "nothing: acknowledge"


def advance(row: Status | None, entry: Entry, *, current_epoch: bool = True) -> Next:
    """The next step of an order, from its Postgres row and its entry in Redis.

    The order stage asks it about redelivered records and records of replaced books, the relay about every order that comes
    due; both take the step it names, so they cannot differ. Where the row alone decides (whether to charge), the payment
    stage and the reconciler read the row. A guard that matched no row means: read both again and ask here, never skip.
    `current_epoch`: the books in force made the record or entry in hand; it matters only where there is neither row nor entry.
    Raises ValueError for a row status that Postgres never stores.
    """
    if row is None:
        if entry is Entry.NONE:
            return Next.PLACE if current_epoch else Next.RESERVE_AGAIN
        # A settled entry without a row cannot come from a settlement (it needs the row): the books disagree.
        return Next.PLACE if entry is Entry.HELD else Next.REBUILD
    if row is Status.NEEDS_RECONCILIATION:
        return Next.RECONCILE
    if row is Status.AWAITING_PAYMENT:
        return Next.PAY if entry is Entry.HELD else Next.REBUILD
    if row in TERMINAL:
        if entry is Entry.HELD:
            return Next.SETTLE
        return Next.ANNOUNCE if entry in SETTLED else Next.DONE
    raise ValueError(f"Postgres never stores {row.value}")
