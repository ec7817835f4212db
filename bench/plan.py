"""The plan of a load run, as one value that generator processes get as JSON."""

from typing import Literal

import msgspec

Mode = Literal["open", "closed", "sell-out"]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """`open`: `rate` arrivals a second, independent of the answers. `closed`: `connections` buyers, each one click at a time.

    `sell-out`: closed, until `quiet_s` without an acceptance after the first "sold out" (at most `seconds`).
    """

    base_url: str
    tokens: str  # file: JSON array of bearer tokens
    mode: Mode
    seconds: float
    rate: float = 0.0
    poisson: bool = False  # random instead of even intervals
    peak_s: float | None = None  # arrivals gather around this second (a triangle over `seconds`)
    patient: float = 0.0  # share of buyers who click again, in vain so far, until `patient_until_s`
    patient_until_s: float = 0.0
    connections: int = 512  # maximum at once, over all processes
    products: tuple[int, ...] = (1,)
    quantities: tuple[int, int] = (1, 1)  # from, to
    double_clicks: float = 0.0  # share of purchases sent several times at once with one Idempotency-Key
    copies: int = 2  # how often such a purchase is sent
    changed_bodies: float = 0.0  # share of the copies with another quantity
    keyless: float = 0.0  # share of purchases without an Idempotency-Key
    drop_after_ms: float | None = None  # the client disconnects then, and retries
    retries: int = 0  # per purchase, with the same key, after an unknown outcome, 429 or 503
    timeout_s: float = 10.0
    follow: float = 0.0  # share of accepted orders followed to their end
    follow_s: float = 60.0
    followers: int = 256  # status requests at once
    quiet_s: float = 3.0
    log: str | None = None  # file: one JSON line per answer, appended
    processes: int = 1
    niceness: int = 0  # CPU priority of the processes, so that what they load comes first
    live: bool = False  # their tallies can be read meanwhile
    seed: int | None = None


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a plan that one generator process does."""

    plan: Plan
    index: int
    run: str  # names this run in its keys


def pieces(total: int, count: int, index: int) -> int:
    """The size of piece `index` when `total` is divided into `count` pieces as evenly as possible."""
    return total // count + (1 if index < total % count else 0)
