"""A finished sale and its audit in, one page for people out, or the same figures for machines."""

from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
from rich.console import Console

from bench.run_card import Machine
from schemas.order_state import TERMINAL, Status

from .sale_tally import SaleTally, at, spread
from .where import where, where_ms

QUIET_STOLEN = 0.02
NEXT = """\
What to look at next
  thrones status                       every process, its pid and port
  thrones logs payment-stage -f        what one of them says
  thrones audit --json                 the books of all products, for machines
  {url}/api/products   the stock, as buyers see it
  {url}/metrics        the gateway's counters
  README.md                            a first purchase with curl, and where each kind of reader starts"""


class AuditedSale(Protocol):
    """What the demo needs of an audit: the verdict, the units still on sale, the page, and the same for machines."""

    @property
    def ok(self) -> bool: ...
    @property
    def unsold(self) -> int: ...
    @property
    def text(self) -> str: ...
    @property
    def figures(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Conditions:
    """`stolen`: the share of CPU time that the host gave to other machines during the sale."""

    machine: Machine
    stolen: float

    @property
    def quiet(self) -> bool:
        return self.machine.quiet and self.stolen <= QUIET_STOLEN

    def __str__(self) -> str:
        warning = "" if self.quiet else "\nTHE MACHINE WAS NOT QUIET: these figures cannot be compared with others."
        return f"On {self.machine}, {self.stolen:.0%} of its CPU taken by other machines{warning}"


def show(console: Console, tally: SaleTally, audited: AuditedSale, conditions: Conditions, url: str) -> None:
    rest = (str(conditions), audited.text, *_remarks(tally, audited), NEXT.format(url=url))
    for part in (_sale(tally), _delays(tally), where(tally), *rest):
        console.print()
        console.print(part, highlight=False, markup=False, soft_wrap=isinstance(part, str))


def figures(tally: SaleTally, audited: AuditedSale, conditions: Conditions) -> dict[str, Any]:
    """What the page says, as JSON says it; the audit is that of `thrones audit --json`."""
    delays = {
        "click_to_202": tally.clients.accepted_ms,
        "202_to_the_end": tally.clients.completed_ms,
        "own": tally.own_delay_ms,
    }
    return {
        "ok": passed(tally, audited),
        "took_s": round(tally.took_s, 1),
        "buyers": tally.buyers,
        "requests": tally.clients.requests,
        "accepted": tally.accepted,
        "ended": {status: tally.with_status(status) for status in sorted(TERMINAL)},
        "unended": tally.unended,
        "refused": dict(tally.refused),
        "double_clicks": tally.clients.double_clicks,
        "doubled_orders": tally.doubled_orders,
        "bad_answers": tally.bad_answers,
        "stock_updates": tally.stock_updates,
        "delays_ms": {name: _percentiles_ms(values) for name, values in delays.items()},
        "where_ms": where_ms(tally),
        "machine": {**msgspec.structs.asdict(conditions.machine), "stolen": round(conditions.stolen, 3)},
        "quiet": conditions.quiet,
        "audit": audited.figures,
    }


def _percentiles_ms(values: list[float]) -> dict[str, int | None]:
    return {f"p{percent}": None if ms is None else round(ms) for percent, ms in at(values).items()}


def passed(tally: SaleTally, audited: AuditedSale) -> bool:
    """The books balance, and no buyer saw anything that must not be."""
    return audited.ok and not tally.doubled_orders and not tally.bad_answers and not tally.unended


def _sale(tally: SaleTally) -> str:
    refusals = ", ".join(f"{code} {count}" for code, count in tally.refused.most_common()) or "none"
    return "\n".join(
        [
            f"The sale took {tally.took_s:.1f} s from the first click to the last order's end",
            f"  buyers      {tally.buyers}, {tally.clients.double_clicks} of them clicked twice; {tally.clients.requests} requests",
            f"  accepted    {tally.accepted} orders; {tally.doubled_orders} double clicks made two",
            f"  ended       confirmed {tally.with_status(Status.CONFIRMED)}, declined {tally.with_status(Status.PAYMENT_FAILED)}, "
            f"failed {tally.with_status(Status.FAILED)}, still unknown {tally.unended}",
            f"  went home   {tally.without_unit} buyers without a unit; refusals: {refusals}",
            f"  watched     {tally.stock_updates} stock updates over SSE, the last one {tally.stock}",
        ]
    )


def _delays(tally: SaleTally) -> str:
    return "\n".join(
        [
            "Delays",
            f"  click to 202              {spread(tally.clients.accepted_ms)}",
            f"  202 to the end, as seen   {spread(tally.clients.completed_ms)}   (by one buyer in four)",
            f"  of it our own             {spread(tally.own_delay_ms)}   (accepted to ended, less the provider's time)",
        ]
    )


def _remarks(tally: SaleTally, audited: AuditedSale) -> list[str]:
    remarks = [f"A buyer got an answer that must not be: {text}" for text in sorted(set(tally.bad_answers))]
    if tally.doubled_orders:
        remarks.append("A double click made two orders.")
    if unsold := audited.unsold:
        remarks.append(
            f"{unsold} units are unsold: declined payments put them back after the buyers had gone. They are on sale still."
        )
    return ["\n".join(remarks)] if remarks else []
