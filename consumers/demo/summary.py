"""A finished sale and its audit in, one page for people out, or the same figures for machines."""

from typing import Any

import msgspec

from consumers.audit.balance import AuditReport
from consumers.audit.show import show
from schemas.order_state import TERMINAL, Status

from .sale_tally import SaleTally, percentile, spread

NEXT = """\
What to look at next
  thrones status                       every process, its pid and port
  thrones logs payment-stage -f        what one of them says
  thrones audit --json                 the books of all products, for machines
  {url}/api/products   the stock, as buyers see it
  {url}/metrics        the gateway's counters
  README.md                            a first purchase with curl, and where each kind of reader starts"""


def summary(tally: SaleTally, report: AuditReport, took_s: float, url: str) -> str:
    return "\n\n".join(
        [_sale(tally, took_s), _delays(tally), show(report), *_remarks(tally, report), NEXT.format(url=url)]
    )


def figures(tally: SaleTally, report: AuditReport, took_s: float) -> dict[str, Any]:
    """What the page says, as JSON says it; the audit is that of `thrones audit --json`."""
    delays = {
        "click_to_202": tally.acknowledged_s,
        "202_to_the_end": tally.completed_s,
        "own": tally.own_delay_s,
    }
    return {
        "ok": passed(tally, report),
        "took_s": round(took_s, 1),
        "buyers": tally.buyers,
        "requests": tally.clicks,
        "accepted": len(tally.accepted),
        "ended": {status: tally.ended(status) for status in sorted(TERMINAL)},
        "unended": tally.unended,
        "refused": dict(tally.refused),
        "double_clicks": tally.double_clicks,
        "doubled_orders": tally.doubled_orders,
        "bad_answers": tally.bad_answers,
        "stock_updates": tally.stock_updates,
        "delays_ms": {name: _percentiles_ms(delay_s) for name, delay_s in delays.items()},
        "audit": msgspec.to_builtins(report),
    }


def _percentiles_ms(delays_s: list[float]) -> dict[str, int | None]:
    found = {f"p{percent}": percentile(delays_s, percent) for percent in (50, 95, 99)}
    return {name: None if value is None else round(value * 1000) for name, value in found.items()}


def passed(tally: SaleTally, report: AuditReport) -> bool:
    """The books balance, and no buyer saw anything that must not be."""
    return report.ok and not tally.doubled_orders and not tally.bad_answers and not tally.unended


def _sale(tally: SaleTally, took_s: float) -> str:
    refusals = ", ".join(f"{code} {count}" for code, count in tally.refused.most_common()) or "none"
    return "\n".join(
        [
            f"The sale took {took_s:.1f} s from the first click to the last order's end",
            f"  buyers      {tally.buyers}, {tally.double_clicks} of them clicked twice; {tally.clicks} requests",
            f"  accepted    {len(tally.accepted)} orders; {tally.doubled_orders} double clicks made two",
            f"  ended       confirmed {tally.ended(Status.CONFIRMED)}, declined {tally.ended(Status.PAYMENT_FAILED)}, "
            f"failed {tally.ended(Status.FAILED)}, still unknown {tally.unended}",
            f"  went home   {tally.sold_out_buyers} buyers without a unit; refusals: {refusals}",
            f"  watched     {tally.stock_updates} stock updates over SSE, the last one {tally.stock}",
        ]
    )


def _delays(tally: SaleTally) -> str:
    return "\n".join(
        [
            "Delays",
            f"  click to 202              {spread(tally.acknowledged_s)}",
            f"  202 to the end, as seen   {spread(tally.completed_s)}",
            f"  of it our own             {spread(tally.own_delay_s)}   (accepted to ended, less the provider's time)",
        ]
    )


def _remarks(tally: SaleTally, report: AuditReport) -> list[str]:
    remarks = [f"A buyer got an answer that must not be: {text}" for text in sorted(set(tally.bad_answers))]
    if tally.doubled_orders:
        remarks.append("A double click made two orders.")
    unsold = sum(product.redis.available for product in report.products)
    if unsold:
        remarks.append(
            f"{unsold} units are unsold: declined payments put them back after the buyers had gone. They are on sale still."
        )
    return ["\n".join(remarks)] if remarks else []
