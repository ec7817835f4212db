"""Collects findings into a short list: a few of each kind in full, and a count of the rest.

The texts do not depend on the order of the findings, because an operator acknowledges findings by their exact text.
"""

from bisect import insort
from collections import Counter, defaultdict
from hashlib import sha256

SHOWN_PER_KIND = 5


class Findings:
    """Groups texts by kind ("version used twice"), so that ten thousand of one kind do not hide another kind."""

    def __init__(self, where: str = "") -> None:
        self._where = f"{where}: " if where else ""
        self._shown: defaultdict[str, list[str]] = defaultdict(list)  # the first in alphabetical order
        self._counts: Counter[str] = Counter()
        self._rest: Counter[str] = Counter()  # a checksum of the texts that are not shown

    def add(self, kind: str, detail: str = "") -> None:
        self._counts[kind] += 1
        insort(self._shown[kind], detail)
        if len(self._shown[kind]) > SHOWN_PER_KIND:
            self._rest[kind] += int.from_bytes(sha256(self._shown[kind].pop().encode()).digest()[:8], "big")

    def expect(self, kind: str, found: object, expected: object) -> None:
        """Adds a finding unless the two are equal."""
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
