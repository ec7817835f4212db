"""`thrones prove`: proves from the log alone that no unit of a product was sold twice, without reading any store.

If two orders were given the same unit, either a version was used twice or the stock after a version does not follow from
the stock before it. So the proof checks three things: each version 1..V is used once; the stock after each version follows
from the one before and never falls below zero; at the end every unit of the opening is on sale, held or sold.
"""

import msgspec

from consumers.audit.balance import AcknowledgedFinding, split_acknowledged
from consumers.audit.log_book import WITHOUT_END, LogBook
from consumers.audit.missing import ENDED
from consumers.audit.readers import read_log
from consumers.audit.show import show_acknowledged
from consumers.replay.when import show_ms
from infra.kafka.offsets import Offsets
from infra.settings import Settings
from schemas.events import StockOpened
from schemas.ids import ProductId
from schemas.order_state import Status


class NoSuchProduct(Exception):
    """The log has no opening of this product."""


class EpochProof(msgspec.Struct, frozen=True):
    """The books of one epoch, as opened and after its last version. All in units except `versions` and `missing`."""

    epoch: int
    reason: str
    opened_at_ms: int
    initial: int
    opened_with: tuple[int, int, int]  # available, held, sold
    versions: int  # the last one
    missing: int
    lowest: int
    ended_with: tuple[int, int, int]

    @property
    def balances(self) -> bool:
        """Whether the units balance. An epoch with missing versions passes: the next epoch's opening decides about it."""
        return self.missing > 0 or sum(self.ended_with) == self.initial


class Proof(msgspec.Struct, frozen=True):
    """`problems` is empty exactly when `proved`. All in units except `orders`. `kept_from_ms` is 0 if the log is complete."""

    proved: bool
    product_id: int
    initial: int
    kept_from_ms: int
    epochs: list[EpochProof]
    orders: int
    accepted: int
    confirmed: int
    released: int
    under_way: int
    problems: list[str]
    acknowledged: list[AcknowledgedFinding] = []


async def prove(settings: Settings, product: ProductId) -> Proof:
    """Raises NoSuchProduct, KafkaError or OSError."""
    offsets = Offsets(settings)
    try:
        books = await read_log(settings, offsets)
    finally:
        await offsets.close()
    if product not in books:
        opened = [str(known) for known in sorted(books) if books[known].openings]
        there = ", ".join(opened[:20]) or "none"
        raise NoSuchProduct(f"product {product} is not in the log; there are: {there}")
    book = books[product]
    if not (book.openings or book.kept_from_ms):
        raise NoSuchProduct(f"product {product} was never opened on the log; {len(book.placed)} orders name it")
    return proof_of(product, book)


def proof_of(product: int, book: LogBook) -> Proof:
    totals, found = book.check()
    problems = [problem for problem in found if WITHOUT_END not in problem]  # an order under way is not an error
    epochs = [_epoch(book, opening) for _, opening in sorted(book.openings.items())]
    if not epochs:
        problems.append(f"product {product}: no opening of its stock is kept, so there is nothing to start from")
    for epoch in epochs:
        if epoch.lowest < 0:
            problems.append(f"epoch {epoch.epoch}: {epoch.lowest} units on sale")
        if not epoch.balances:
            problems.append(f"epoch {epoch.epoch}: {epoch.ended_with} are not the {epoch.initial} it was opened with")
    initial = epochs[-1].initial if epochs else 0
    if totals.confirmed > initial:
        problems.append(f"{totals.confirmed} units were sold of {initial}")
    problems, acknowledged = split_acknowledged(problems, [book])
    return Proof(
        proved=not problems,
        product_id=product,
        initial=initial,
        kept_from_ms=book.kept_from_ms,
        epochs=epochs,
        orders=len(book.placed),
        accepted=totals.accepted,
        confirmed=totals.confirmed,
        released=totals.released,
        under_way=totals.lost,
        problems=problems,
        acknowledged=acknowledged,
    )


def _epoch(book: LogBook, opening: StockOpened) -> EpochProof:
    uses = book.uses(opening.epoch)
    last = max(uses, default=0)
    held, sold = opening.held, opening.sold
    for use in uses.values():
        end = book.ended[use.order_id] if use.kind == ENDED else None
        if end is not None and end.status is Status.CONFIRMED:
            held, sold = held - end.quantity, sold + end.quantity
        else:
            held -= (
                use.change
            )  # an end that is announced again returns no units: it did so before this epoch was opened
    available = uses[last].available if uses else opening.available
    return EpochProof(
        epoch=opening.epoch,
        reason=opening.reason,
        opened_at_ms=opening.opened_at_ms,
        initial=opening.initial,
        opened_with=(opening.available, opening.held, opening.sold),
        versions=last,
        missing=last - len(uses),
        lowest=min((use.available for use in uses.values()), default=opening.available),
        ended_with=(available, held, sold),
    )


def show(proof: Proof) -> str:
    """The proof as text, step by step."""
    cut = f"from {show_ms(proof.kept_from_ms)}: older records were cut off" if proof.kept_from_ms else "from offset 0"
    lines = [f"Product {proof.product_id}, by the topics orders and order-status alone ({cut})"]
    for epoch in proof.epochs:
        lines += ["", *_show_epoch(epoch)]
    lines += [
        "",
        f"  owners    {proof.orders} orders took {proof.accepted} units: {proof.confirmed} confirmed, "
        f"{proof.released} given back, {proof.under_way} under way",
        f"            {proof.confirmed} sold of {proof.initial}, each to one order",
        "",
    ]
    lines += [show_acknowledged(proof.acknowledged), ""] if proof.acknowledged else []
    if proof.proved:
        since = f" since {show_ms(proof.kept_from_ms)}" if proof.kept_from_ms else ""
        lines.append(f"PROVED: never oversold{since}.")
    else:
        lines += ["NOT PROVED:", *(f"  - {problem}" for problem in proof.problems)]
        if proof.under_way:
            lines.append(
                "  A sale is under way: the news of its last versions may still be on its way. Ask again later."
            )
    return "\n".join(lines)


def _show_epoch(epoch: EpochProof) -> list[str]:
    gaps = "none missing" if not epoch.missing else f"{epoch.missing} missing (lost with Redis, or announced later)"
    versions = f"versions 1..{epoch.versions}, each used once, {gaps}" if epoch.versions else "no version used"
    return [
        f"  epoch {epoch.epoch:<3} opened {show_ms(epoch.opened_at_ms)} ({epoch.reason}): "
        f"{epoch.initial} = {_units(epoch.opened_with)}",
        f"            {versions}",
        f"            stock after each follows from the one before; lowest {epoch.lowest}",
        f"            left {_units(epoch.ended_with)} = {sum(epoch.ended_with)}",
    ]


def _units(units: tuple[int, int, int]) -> str:
    available, held, sold = units
    return f"{available} on sale + {held} held + {sold} sold"
