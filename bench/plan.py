"""What a load run is to do, as one value that travels to the generator processes as JSON."""

from typing import Literal

import msgspec

Mode = Literal["open", "closed", "sell-out"]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """`open`: `rate` arrivals a second, whatever the answers; `closed`: `connections` buyers, each one click after the other;

    `sell-out`: closed, until nothing has been accepted for `quiet_s` after the first "sold out" (at most `seconds`).
    """

    base_url: str
    tokens: str  # file: JSON array of bearer tokens
    mode: Mode
    seconds: float
    rate: float = 0.0
    poisson: bool = False  # arrivals at random instead of evenly spaced
    connections: int = 512  # most at once, over all processes
    products: tuple[int, ...] = (1,)
    quantities: tuple[int, int] = (1, 1)  # from, to
    double_clicks: float = 0.0  # share of wishes sent twice at once with the same Idempotency-Key
    copies: int = 2  # how often such a wish is sent
    changed_bodies: float = 0.0  # share of the copies that ask for another quantity
    keyless: float = 0.0  # share of wishes without an Idempotency-Key
    drop_after_ms: float | None = None  # the client hangs up then, and tries again
    retries: int = 0  # of one wish, with the same key, after an unknown outcome, 429 or 503
    timeout_s: float = 10.0
    follow: float = 0.0  # share of accepted orders followed to their end
    follow_s: float = 60.0
    quiet_s: float = 3.0
    log: str | None = None  # file: one JSON line an answer, appended
    processes: int = 1
    seed: int | None = None


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a plan that one generator process does."""

    plan: Plan
    index: int
    run: str  # names this run in its keys


def pieces(total: int, count: int, index: int) -> int:
    """The size of piece `index` when `total` is cut into `count` as even as can be."""
    return total // count + (1 if index < total % count else 0)
