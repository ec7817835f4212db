"""Fair shares of a limited number of places: when all are taken, the largest holder loses one to a smaller holder.

A single holder may use all places, but cannot keep others out.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

OnDisplaced = Callable[[], None]


class SharesFull(Exception):
    """All places are taken, and no holder has so many more that it has to give one up."""


class Place:
    """One place of the holder `who`. `on_displaced` is called once when another holder takes it."""

    __slots__ = ("on_displaced", "who")

    def __init__(self, who: Hashable, on_displaced: OnDisplaced) -> None:
        self.who = who
        self.on_displaced = on_displaced


class Shares:
    """At most `places` in all, and `each` per holder.

    When all are taken, the oldest place of the largest holder is displaced; at `each`, the holder's own oldest one.
    """

    def __init__(self, places: int, each: int | None = None) -> None:
        self._places = places
        self._each = places + 1 if each is None else each
        self._held: dict[Hashable, dict[Place, None]] = {}
        self.count = 0

    def take(self, who: Hashable, on_displaced: OnDisplaced) -> Place:
        """Release it with `leave`. Raises SharesFull."""
        own = self._held.get(who, {})
        if len(own) >= self._each:
            self._displace(own)
        elif self.count >= self._places:
            most = max(self._held.values(), key=len)
            if len(most) <= len(own) + 1:  # else two equal holders would displace each other in turn
                raise SharesFull
            self._displace(most)
        place = Place(who, on_displaced)
        self._held.setdefault(who, {})[place] = None
        self.count += 1
        return place

    def leave(self, place: Place) -> None:
        """Release a place. Does nothing if it was displaced already."""
        own = self._held.get(place.who, {})
        if place not in own:
            return
        del own[place]
        self.count -= 1
        if not own:
            del self._held[place.who]

    @contextmanager
    def hold(self, who: Hashable, on_displaced: OnDisplaced) -> Iterator[Place]:
        place = self.take(who, on_displaced)
        try:
            yield place
        finally:
            self.leave(place)

    def _displace(self, places: dict[Place, None]) -> None:
        oldest = next(iter(places))
        self.leave(oldest)
        oldest.on_displaced()
