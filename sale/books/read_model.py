"""The steps of an order as its read model keeps them: a letter each, and milliseconds since it was placed ("q0;a13;c950").

Short, because Redis keeps a hash in one small piece (a listpack) while none of its values has more than 64 bytes, and takes
three times the memory for it afterwards.
"""

from collections.abc import Iterable

from schemas.order_state import Status

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
    """Statuses and when each was reached (ms since the epoch), in order."""
    return ";".join(f"{LETTERS[status]}{at_ms - placed_ms}" for status, at_ms in steps)


def history(text: str, placed_ms: int) -> tuple[tuple[str, int], ...]:
    """Statuses and when they were first reached (ms since the epoch), in order.

    Steps that a release before this one wrote are whole: "queued@1796099529126".
    """
    seen: dict[str, int] = {}
    for step in text.split(";"):
        status, at, at_ms = step.partition("@")
        if at:
            seen.setdefault(status, int(at_ms))
        else:
            seen.setdefault(STATUSES[step[0]], placed_ms + int(step[1:]))
    return tuple(seen.items())
