"""Checks what the log alone proves about the stock of one product. Events may come in any order and in several copies.

Within an epoch versions run 1..V without a gap, and `available` follows from the units of each version, so no unit was sold
twice. Only an epoch that a rebuild closed may miss versions, and only as many as later openings explain (see missing.py).
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from msgspec import UNSET

from schemas.events import AnyEvent, OrderPlaced, OrderStatusChanged, SaleControlled, StockOpened
from schemas.order_state import TERMINAL, Status

from .findings import Findings
from .missing import ENDED, PLACED, Life, Use, VersionHistory, last_version

_BIT = {status: 1 << at for at, status in enumerate(Status)}
# `failed` is the order stage's refusal, before any charge; once payment is requested, the provider decides how an order ends.
_AT_PAYMENT = _BIT[Status.AWAITING_PAYMENT] | _BIT[Status.PROCESSING_PAYMENT] | _BIT[Status.NEEDS_RECONCILIATION]
_NO_PATH = _BIT[Status.FAILED]
WITHOUT_END = "accepted without an end"


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """Who acknowledged a finding, why and when."""

    who: str
    why: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class Totals:
    """All in units except the last four, which are counts. `lost`: accepted on the log without an end there."""

    accepted: int
    confirmed: int
    released: int
    lost: int
    epochs: int
    versions: int
    gaps: int
    repeats: int


class LogBook:
    """The folded events of one product. `kept_from_ms` is the append time before which the log was cut (0: it is complete)."""

    def __init__(self, product_id: int, kept_from_ms: int = 0) -> None:
        self.kept_from_ms = kept_from_ms
        self.placed: dict[str, OrderPlaced] = {}
        self.ended: dict[str, OrderStatusChanged] = {}
        self.openings: dict[int, StockOpened] = {}
        self.acknowledged: dict[str, Acknowledged] = {}  # findings, by their text
        self._uses: defaultdict[int, dict[int, Use]] = defaultdict(dict)
        self._versions: dict[tuple[int, str, str], int] = {}
        self._passed: dict[str, int] = {}  # the announced statuses of an order, one bit each
        self._folding = Findings(f"product {product_id}: log")
        self._noted: set[tuple[str, str]] = set()
        self._users: dict[tuple[int, int], set[str]] = {}  # versions with more than one use
        self._doings: dict[tuple[int, str, str], set[int]] = {}  # versions of a step that happened more than once
        self._where = f"product {product_id}: log"

    @property
    def first_epoch(self) -> int:
        """The first epoch whose opening is kept. Older orders were placed on a log that is gone."""
        return min(self.openings, default=0)

    @property
    def whole_from(self) -> int:
        """The first epoch whose orders must all be on the log. A lone opening may be a late copy on a log that was wiped."""
        log_lost_in = max((epoch for epoch, opening in self.openings.items() if opening.log_lost), default=0)
        used = (epoch for epoch in self.openings if last_version(epoch, self.openings, self._uses))
        return max(log_lost_in, min(used, default=self.newest_epoch))

    @property
    def newest_epoch(self) -> int:
        """0 if no epoch is kept. A cut log may keep events of an epoch without its opening."""
        known = self.openings.keys() | self._uses.keys() if self.kept_from_ms else self.openings
        return max(known, default=0)

    def uses(self, epoch: int) -> Mapping[int, Use]:
        """The use of each version of an epoch, as far as the log has it."""
        return self._uses.get(epoch, {})

    def lowest_after(self, epoch: int) -> int | None:
        """The fewest units on sale in any later epoch on the log; None without a later epoch."""
        openings = [opening.available for later, opening in self.openings.items() if later > epoch]
        uses = [use.available for later, of in self._uses.items() if later > epoch for use in of.values()]
        return min([*openings, *uses], default=None)

    def add(self, event: AnyEvent, appended_ms: int) -> None:
        match event:
            case OrderPlaced():
                self._add_placed(event, appended_ms)
            case OrderStatusChanged():
                self._passed[event.order_id] = self._passed.get(event.order_id, 0) | _BIT[event.status]
                if event.status in TERMINAL:
                    self._add_ended(event, appended_ms)
            case StockOpened():
                self._add_opened(event)
            case SaleControlled(action="acknowledge"):
                done = Acknowledged(who=event.who, why=event.why, at_ms=event.at_ms)
                self.acknowledged |= dict.fromkeys(event.findings, done)
            case _:
                pass  # it does not change the books

    def check(self, redis_version: int | None = None) -> tuple[Totals, list[str]]:
        """The totals and the problems of the log; `redis_version` is the last version of the newest epoch in Redis."""
        problems = Findings(self._where)
        whole = {epoch: opening for epoch, opening in self.openings.items() if epoch >= self.whole_from}
        history = VersionHistory(whole, self._uses, self._lives())
        gaps = sum(
            self._check_epoch(epoch, history, redis_version, problems)
            for epoch in sorted(self._uses.keys() | self.openings)
        )
        self._check_uses(problems)
        lost = [order for order in self.placed.values() if order.order_id not in self.ended]
        for order in lost:
            problems.add(WITHOUT_END, f"order {order.order_id} ({order.quantity} units)")
        for order_id, passed in self._passed.items():
            if passed & _NO_PATH and passed & _AT_PAYMENT:
                problems.add("statuses that are no path", f"order {order_id}: {_names(passed)}")
        confirmed = sum(end.quantity for end in self.ended.values() if end.status is Status.CONFIRMED)
        totals = Totals(
            accepted=sum(order.quantity for order in self.placed.values()),
            confirmed=confirmed,
            released=sum(end.quantity for end in self.ended.values()) - confirmed,
            lost=sum(order.quantity for order in lost),
            epochs=len(self.openings),
            versions=sum(map(len, self._uses.values())),
            gaps=gaps,
            repeats=sum(len(names) - 1 for names in self._users.values()),
        )
        return totals, self._folding.texts() + problems.texts()

    def _add_placed(self, event: OrderPlaced, appended_ms: int) -> None:
        first = self.placed.setdefault(event.order_id, event)
        before, now = _terms(first), _terms(event)
        if before != now:
            self._record(
                "order placed twice, differently", f"{event.order_id}: {min(before, now)} and {max(before, now)}"
            )
        use = Use(event.order_id, PLACED, -event.quantity, event.available, appended_ms)
        self._use(event.epoch, event.version, use)

    def _add_ended(self, event: OrderStatusChanged, appended_ms: int) -> None:
        first = self.ended.setdefault(event.order_id, event)
        if first.status is not event.status:
            one, other = sorted((first.status, event.status))
            self._record("order with two ends", f"{event.order_id}: {one} and {other}")
        if event.epoch is UNSET or event.version is UNSET or event.available is UNSET:
            if event.status is not Status.FAILED:
                self._record("end without a version", f"{event.order_id}: {event.status}")
            return
        change = 0 if event.returned is UNSET else event.returned
        self._use(event.epoch, event.version, Use(event.order_id, ENDED, change, event.available, appended_ms))

    def _add_opened(self, event: StockOpened) -> None:
        first = self.openings.setdefault(event.epoch, event)
        if first != event:
            self._record("epoch opened twice, differently", f"epoch {event.epoch}")
        if event.initial != event.available + event.held + event.sold:
            self._record(
                "opening that does not add up",
                f"epoch {event.epoch}: {event.initial} != {event.available} + {event.held} + {event.sold}",
            )

    def _use(self, epoch: int, version: int, use: Use) -> None:
        known = self._uses[epoch].setdefault(version, use)
        if (known.order_id, known.kind) != (use.order_id, use.kind):
            self._users.setdefault((epoch, version), {_name(known)}).add(_name(use))
            self._uses[epoch][version] = min(known, use, key=lambda one: (one.order_id, one.kind))
        elif (known.change, known.available) != (use.change, use.available):
            self._record("copies that differ", f"epoch {epoch} version {version}: {_name(use)}")
        what = (epoch, use.order_id, use.kind)
        if (before := self._versions.setdefault(what, version)) != version:
            self._doings.setdefault(what, {before}).add(version)

    def _record(self, kind: str, detail: str) -> None:
        """Notes a finding once, even if several copies of a record show it."""
        if (kind, detail) not in self._noted:
            self._noted.add((kind, detail))
            self._folding.add(kind, detail)

    def _check_uses(self, problems: Findings) -> None:
        for (epoch, version), names in self._users.items():
            first, *others = sorted(names)
            for other in others:
                problems.add("version used twice", f"epoch {epoch} version {version}: {first} and {other}")
        for (epoch, order_id, kind), versions in self._doings.items():
            least, *more = sorted(versions)
            for version in more:
                problems.add(
                    "done twice in one epoch", f"{kind} {order_id}: epoch {epoch} versions {least} and {version}"
                )

    def _check_epoch(self, epoch: int, history: VersionHistory, redis_version: int | None, problems: Findings) -> int:
        """Checks the chain of one epoch; returns the number of unexplained missing versions."""
        opening, uses = self.openings.get(epoch), self._uses[epoch]
        if not self.kept_from_ms and (epoch < self.first_epoch or not self.openings):
            return 0  # its log is gone: no opening to start from
        if opening is None and not self.kept_from_ms:
            problems.add("epoch without an opening", f"epoch {epoch}, {len(uses)} versions")
        last = max(uses, default=0) if self.kept_from_ms else last_version(epoch, self.openings, self._uses)
        if epoch >= self.newest_epoch and redis_version is not None:
            if last > redis_version:
                problems.add("ahead of Redis", f"epoch {epoch} version {last}, Redis has {redis_version}")
            last = max(last, redis_version)
        self._check_chain(epoch, opening, problems)
        if epoch not in history.openings and not self.kept_from_ms:
            return 0
        if not self.kept_from_ms and (units := history.units_from_nowhere(epoch)):
            problems.add(
                "opened with units of no order", f"epoch {epoch}: {units} more are taken than the log knows of"
            )
        missing = [v for v in range(1, last + 1) if v not in uses]
        kept = [v for v, after_ms in self._appended_after(missing, uses) if not self._was_cut(after_ms)]
        unexcused = kept if epoch >= self.newest_epoch else history.unexplained(epoch, kept)
        for version in unexcused:
            problems.add("version missing", f"epoch {epoch} version {version} of {last}")
        return len(unexcused)

    def _lives(self) -> dict[str, Life]:
        placed: dict[str, int] = {}
        ended: dict[str, int] = {}
        for epoch, order_id, kind in self._versions:
            if kind == PLACED:
                placed[order_id] = min(epoch, placed.get(order_id, epoch))
            else:
                ended[order_id] = max(epoch, ended.get(order_id, epoch))
        return {
            id_: Life(placed.get(id_, 0), self.placed[id_].quantity if id_ in self.placed else 0, ended.get(id_))
            for id_ in placed.keys() | ended.keys()
        }

    def _check_chain(self, epoch: int, opening: StockOpened | None, problems: Findings) -> None:
        uses = self._uses[epoch]
        before, available = (0, opening.available) if opening else (-1, 0)
        for version in sorted(uses):
            use = uses[version]
            if version == before + 1 and use.available != available + use.change:
                problems.add(
                    "available does not follow",
                    f"epoch {epoch} version {version}: {use.available} after {available} {use.change:+d} ({_name(use)})",
                )
            before, available = version, use.available

    def _appended_after(self, missing: list[int], uses: dict[int, Use]) -> list[tuple[int, int | None]]:
        """Each missing version with the earliest append time of a later version, or None."""
        found: list[tuple[int, int | None]] = []
        present = sorted(uses, reverse=True)
        earliest: int | None = None
        at = 0
        for version in reversed(missing):
            while at < len(present) and present[at] > version:
                appended_ms = uses[present[at]].appended_ms
                earliest = appended_ms if earliest is None else min(earliest, appended_ms)
                at += 1
            found.append((version, earliest))
        return found[::-1]

    def _was_cut(self, after_ms: int | None) -> bool:
        """Whether the version was cut off with the beginning of the log."""
        return after_ms is not None and after_ms <= self.kept_from_ms


def _terms(event: OrderPlaced) -> tuple[int, int, int, str]:
    return event.user_id, event.quantity, event.unit_price_cents, event.currency


def _names(passed: int) -> str:
    return ", ".join(status.value for status, bit in _BIT.items() if passed & bit)


def _name(use: Use) -> str:
    return f"{use.kind} {use.order_id}"
