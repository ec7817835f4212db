"""Reads the client log of a load test: which orders were accepted, refused or left without an answer."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from sale.books.key_record import key_hash
from schemas.limits import SLOWEST_ANSWER_MS

from .facts import ClientAnswers, ScopedKey
from .findings import Findings

# The status that the interface documents for each code (docs/api.md, gateway/http/problems.py).
STATUS_OF = {
    "invalid_request": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "sold_out": 409,
    "user_limit": 409,
    "sale_not_open": 409,
    "sale_closed": 409,
    "email_taken": 409,
    "too_large": 413,
    "unsupported_media_type": 415,
    "key_reused": 422,
    "rate_limited": 429,
    "header_too_large": 431,
    "busy": 503,
    "unavailable": 503,
    "stock_not_verified": 503,
    "sale_paused": 503,
    "outcome_unknown": 504,
}


class _Line(msgspec.Struct, frozen=True):
    """One request and its outcome: A = 202, U = unknown (timeout, reset, 502, 504), R = definitely refused.

    `status` is 0 without an HTTP answer. Members that a log leaves out are not checked.
    """

    outcome: Literal["A", "U", "R"]
    user: int
    key: str | None = None
    order: str | None = None
    product: int | None = None
    quantity: int | None = None
    status: int | None = None
    code: str = ""
    latency_ms: float = 0.0
    retry_after: str | None = ""  # None: the answer had none

    @property
    def scoped_key(self) -> ScopedKey:
        return self.user, None if self.key is None else key_hash(self.key)


def read_client_log(path: Path, product: int | None = None) -> ClientAnswers:
    """Reads the lines of one product, or of all. Raises msgspec.DecodeError or OSError."""
    orders: dict[str, set[str]] = {"A": set(), "U": set(), "R": set()}
    scoped_keys: dict[str, set[ScopedKey]] = {"A": set(), "U": set(), "R": set()}
    order_ids: defaultdict[ScopedKey, set[str]] = defaultdict(set)
    quantities: dict[str, set[int]] = {}
    complaints = Findings("clients")
    for line in _lines(path):
        if product is not None and line.product not in (None, product):
            continue
        _check_answer(line, complaints)
        scoped_keys[line.outcome].add(line.scoped_key)
        if line.order is not None:
            orders[line.outcome].add(line.order)
        if line.order is not None and line.outcome == "A" and line.key is not None:
            order_ids[line.scoped_key].add(line.order)
        if line.order is not None and line.outcome == "A" and line.quantity is not None:
            quantities.setdefault(line.order, set()).add(line.quantity)
    keyed = {
        scoped_key for scoped_key in scoped_keys["R"] if scoped_key[1] is not None
    }  # without a key, requests cannot be told apart
    return ClientAnswers(
        accepted=frozenset(orders["A"]),
        unknown=frozenset(orders["U"]),
        refused=frozenset(orders["R"]),
        unknown_keys=frozenset(scoped_keys["U"]),
        refused_keys=frozenset(keyed - scoped_keys["A"] - scoped_keys["U"]),
        doubled_keys={scoped_key: frozenset(ids) for scoped_key, ids in order_ids.items() if len(ids) > 1},
        quantities={order: frozenset(units) for order, units in quantities.items()},
        complaints=complaints.texts(),
    )


def _check_answer(line: _Line, complaints: Findings) -> None:
    """I11: no 500, only documented codes, every answer within 5 s, `Retry-After` on every 429 and 503."""
    said = f"{line.status} {line.code}".rstrip()
    if line.status and line.status != 202 and STATUS_OF.get(line.code) != line.status:
        complaints.add("an undocumented answer", f"user {line.user} got {said}")
    if line.code == "unreadable":
        complaints.add("an answer that is no HTTP", f"user {line.user}")
    if line.latency_ms > SLOWEST_ANSWER_MS:
        complaints.add("later than 5 s", f"user {line.user} waited {line.latency_ms / 1000:.1f} s for {said}")
    if line.status in (429, 503) and line.retry_after is None:
        complaints.add("no Retry-After", f"user {line.user} got {said}")


def _lines(path: Path) -> Iterator[_Line]:
    decode = msgspec.json.Decoder(_Line).decode
    with path.open("rb") as file:
        for raw in file:
            if raw.strip():
                yield decode(raw)
