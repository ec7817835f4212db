"""Findings in, a readable list out: the first few of each kind in words, the rest as a number."""

from collections import Counter

SHOWN_PER_KIND = 5


class Problems:
    """Collects texts under a kind ("version used twice"), so that ten thousand of one kind do not hide the other one."""

    def __init__(self, where: str = "") -> None:
        self._where = f"{where}: " if where else ""
        self._shown: list[tuple[str, str]] = []
        self._counts: Counter[str] = Counter()

    def add(self, kind: str, detail: str = "") -> None:
        self._counts[kind] += 1
        if self._counts[kind] <= SHOWN_PER_KIND:
            self._shown.append((kind, f"{self._where}{kind}{': ' if detail else ''}{detail}"))

    def expect(self, kind: str, found: object, expected: object) -> None:
        """One more problem unless the two are equal."""
        if found != expected:
            self.add(kind, f"{found}, expected {expected}")

    def count(self, kind: str) -> int:
        return self._counts[kind]

    def texts(self) -> list[str]:
        more = [
            f"{self._where}{kind}: {count - SHOWN_PER_KIND} more"
            for kind, count in self._counts.items()
            if count > SHOWN_PER_KIND
        ]
        return [text for _, text in self._shown] + more

    def __bool__(self) -> bool:
        return bool(self._counts)
