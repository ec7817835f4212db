"""Places that many want, shared out by who asks: when all are taken, whoever holds most gives way to one who holds fewer.

Nobody who is alone is limited by his share, and nobody can keep others out by taking all there is.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

GiveWay = Callable[[], None]


class SharesFull(Exception):
    """All places are taken, and nobody holds so many more that he would have to give one up."""


class Place:
    """One place taken by `who`; `give_way` is called, once, when another gets it."""

    __slots__ = ("give_way", "who")

    def __init__(self, who: Hashable, give_way: GiveWay) -> None:
        self.who = who
        self.give_way = give_way


class Shares:
    """At most `places` in all, where the oldest of the largest share gives way, and `each` of one, where his own does."""

    def __init__(self, places: int, each: int | None = None) -> None:
        self._places = places
        self._each = places + 1 if each is None else each
        self._held: dict[Hashable, dict[Place, None]] = {}
        self.count = 0

    def take(self, who: Hashable, give_way: GiveWay) -> Place:
        """To be left again with `leave`. Raises Full."""
        own = self._held.get(who, {})
        if len(own) >= self._each:
            self._displace(own)
        elif self.count >= self._places:
            most = max(self._held.values(), key=len)
            if len(most) <= len(own) + 1:  # else two who hold as many would take one another's place in turn
                raise SharesFull
            self._displace(most)
        place = Place(who, give_way)
        self._held.setdefault(who, {})[place] = None
        self.count += 1
        return place

    def leave(self, place: Place) -> None:
        """A place that was given up already is left alone."""
        own = self._held.get(place.who, {})
        if place not in own:
            return
        del own[place]
        self.count -= 1
        if not own:
            del self._held[place.who]

    @contextmanager
    def one(self, who: Hashable, give_way: GiveWay) -> Iterator[Place]:
        place = self.take(who, give_way)
        try:
            yield place
        finally:
            self.leave(place)

    def _displace(self, places: dict[Place, None]) -> None:
        oldest = next(iter(places))
        self.leave(oldest)
        oldest.give_way()
