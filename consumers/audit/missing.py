"""Decides which missing versions of a closed epoch nothing on the log explains. Pure.

Two kinds of versions may be missing. A reservation that only Redis had, and Redis lost: the next opening no longer counts
its units as taken. A settlement whose announcement died with its process: the end is announced in a later epoch. Both leave
counts on the log, and no more versions may be missing than these counts allow. Passing time explains nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from msgspec import UNSET

from schemas.events import StockOpened

PLACED, ENDED = "placed", "ended"
NOTHING_FOUND = (0, 0)


@dataclass(frozen=True, slots=True)
class Use:
    """The reservation or end of an order that used a version."""

    order_id: str
    kind: str
    change: int  # of the units on sale
    available: int
    appended_ms: int


@dataclass(frozen=True, slots=True)
class Life:
    """An order on the log: when it was first placed (0: never), its units, when its end last used a version."""

    placed_in: int
    units: int
    ended_in: int | None


@dataclass(frozen=True, slots=True)
class VersionHistory:
    """The openings of a product, the uses of versions by epoch, and its orders."""

    openings: Mapping[int, StockOpened]
    chains: Mapping[int, Mapping[int, Use]]
    lives: Mapping[str, Life]

    def unexplained(self, epoch: int, missing: Sequence[int]) -> list[int]:
        """The missing versions of a closed epoch that exceed what can have been lost."""
        if not missing:
            return []
        later = [opening for of_epoch, opening in sorted(self.openings.items()) if of_epoch > epoch]
        # If Redis still had the books at (e, v), they hold everything accepted up to there: none of that can be lost.
        kept_to = min((found_by(opening) for opening in later), default=NOTHING_FOUND)
        lost = [version for version in missing if (epoch, version) > kept_to]
        kept = [version for version in missing if (epoch, version) <= kept_to]
        settled = self._settled_unannounced(epoch, later)
        units = sum(self._units_lost(opening) for opening in later if lost and found_by(opening) < (epoch, lost[-1]))
        excess = max(len(kept) - settled, len(missing) - settled - units, 0)
        return [*kept, *lost][:excess]

    def units_from_nowhere(self, epoch: int) -> int:
        """Units that an opening counts as taken although no order on the log took them."""
        opening, before = self.openings[epoch], self._before(epoch)
        if (
            before is None
            or opening.log_lost
            or found_by(opening) > (before.epoch, max(self.chains.get(before.epoch, {}), default=0))
        ):
            return 0  # the first epoch; or records of what Redis had may still come
        units = taken(opening) - self._taken_at_the_end(before)
        return max(0, units - self._older_units(before.epoch, epoch)) if units > 0 else 0

    def _settled_unannounced(self, epoch: int, later: Sequence[StockOpened]) -> int:
        """Settlements that the openings found and announced again, until an epoch was in force; at most what the log shows."""
        announced: list[int] = []
        for opening in later:
            if opening.announced_again is UNSET:
                return self._ended_after(epoch)
            announced.append(opening.announced_again)
            if self.chains.get(opening.epoch):
                break
        return min(self._ended_after(epoch), max(announced, default=0))

    def _ended_after(self, epoch: int) -> int:
        """Orders that may have been settled in `epoch` without an announcement: it came later, or is still to come."""
        announced = {use.order_id for use in self.chains.get(epoch, {}).values() if use.kind == ENDED}
        return sum(
            life.placed_in <= epoch and (life.ended_in is None or life.ended_in > epoch) and order_id not in announced
            for order_id, life in self.lives.items()
        )

    def _units_lost(self, opening: StockOpened) -> int:
        """Units that were taken at the end of the previous epoch and that this opening no longer counts as taken."""
        before = self._before(opening.epoch)
        if before is None:
            return 0
        brought_back = (
            NOTHING_FOUND < found_by(opening) < (before.epoch, 0)
        )  # an old copy still has what was lost before
        units = self._older_units(before.epoch, opening.epoch) if brought_back else 0
        return max(0, self._taken_at_the_end(before) - taken(opening) + units)

    def _older_units(self, before: int, epoch: int) -> int:
        """Units of orders that this opening may count for the first time: placed in older epochs, not ended when it was made."""
        return sum(
            life.units
            for life in self.lives.values()
            if life.placed_in < before and (life.ended_in is None or life.ended_in >= epoch)
        )

    def _before(self, epoch: int) -> StockOpened | None:
        return self.openings.get(max((e for e in self.openings if e < epoch), default=0))

    def _taken_at_the_end(self, opening: StockOpened) -> int:
        chain = self.chains.get(opening.epoch)
        return opening.initial - chain[max(chain)].available if chain else taken(opening)


def last_version(epoch: int, openings: Mapping[int, StockOpened], chains: Mapping[int, Mapping[int, Use]]) -> int:
    """The last version of an epoch on the log or found in Redis by an opening."""
    of_redis = [version for of_epoch, version in map(found_by, openings.values()) if of_epoch == epoch]
    return max([*chains.get(epoch, {}), *of_redis], default=0)


def taken(opening: StockOpened) -> int:
    return opening.initial - opening.available


def found_by(opening: StockOpened) -> tuple[int, int]:
    """Epoch and version of the books that Redis still had; none for older records, which do not say."""
    return NOTHING_FOUND if opening.found_epoch is UNSET else (opening.found_epoch, opening.found_version or 0)
