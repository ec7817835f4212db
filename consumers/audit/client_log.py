"""The client log of a load run in, what its clients were promised, refused or left without knowing out."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from infra.inventory.keys import key_hash

from .facts import ClientLog, Wish


class _Line(msgspec.Struct, frozen=True):
    """One answer, or its absence: A = 202, U = outcome unknown (timeout, reset, 502, 504), R = refused for certain."""

    outcome: Literal["A", "U", "R"]
    user: int
    key: str | None = None
    order: str | None = None
    product: int | None = None

    @property
    def wish(self) -> Wish:
        return self.user, None if self.key is None else key_hash(self.key)


def read_client_log(path: Path, product: int | None = None) -> ClientLog:
    """Of one product's lines, or of all. Raises msgspec.DecodeError or OSError."""
    orders: dict[str, set[str]] = {"A": set(), "U": set(), "R": set()}
    wishes: dict[str, set[Wish]] = {"A": set(), "U": set(), "R": set()}
    told: defaultdict[Wish, set[str]] = defaultdict(set)
    for line in _lines(path):
        if product is not None and line.product not in (None, product):
            continue
        wishes[line.outcome].add(line.wish)
        if line.order is not None:
            orders[line.outcome].add(line.order)
        if line.order is not None and line.outcome == "A" and line.key is not None:
            told[line.wish].add(line.order)
    keyed = {wish for wish in wishes["R"] if wish[1] is not None}  # without a key, one wish is not told from the next
    return ClientLog(
        accepted=frozenset(orders["A"]),
        unknown=frozenset(orders["U"]),
        refused=frozenset(orders["R"]),
        unknown_wishes=frozenset(wishes["U"]),
        refused_wishes=frozenset(keyed - wishes["A"] - wishes["U"]),
        doubled_wishes={wish: frozenset(ids) for wish, ids in told.items() if len(ids) > 1},
    )


def _lines(path: Path) -> Iterator[_Line]:
    decode = msgspec.json.Decoder(_Line).decode
    with path.open("rb") as file:
        for raw in file:
            if raw.strip():
                yield decode(raw)
