"""Findings in, a readable list out: a few of each kind in words, the rest as a number.

The same findings make the same texts, in whatever order they come: an operator acknowledges findings by their words.
"""

from bisect import insort
from collections import Counter, defaultdict
from hashlib import sha256

SHOWN_PER_KIND = 5


class Findings:
    """Collects texts under a kind ("version used twice"), so that ten thousand of one kind do not hide the other one."""

    def __init__(self, where: str = "") -> None:
        self._where = f"{where}: " if where else ""
        self._shown: defaultdict[str, list[str]] = defaultdict(list)  # the first in alphabetical order
        self._counts: Counter[str] = Counter()
        self._rest: Counter[str] = Counter()  # a sum over those not shown: another finding, another sum

    def add(self, kind: str, detail: str = "") -> None:
        self._counts[kind] += 1
        insort(self._shown[kind], detail)
        if len(self._shown[kind]) > SHOWN_PER_KIND:
            self._rest[kind] += int.from_bytes(sha256(self._shown[kind].pop().encode()).digest()[:8], "big")

    def expect(self, kind: str, found: object, expected: object) -> None:
        """One more problem unless the two are equal."""
        if found != expected:
            self.add(kind, f"{found}, expected {expected}")

    def count(self, kind: str) -> int:
        return self._counts[kind]

    def texts(self) -> list[str]:
        shown = [
            f"{self._where}{kind}{': ' if detail else ''}{detail}"
            for kind, details in self._shown.items()
            for detail in details
        ]
        more = [
            f"{self._where}{kind}: {self._counts[kind] - SHOWN_PER_KIND} more ({rest % 2**32:08x})"
            for kind, rest in self._rest.items()
        ]
        return shown + more

    def __bool__(self) -> bool:
        return bool(self._counts)
