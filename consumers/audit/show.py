"""Renders an audit report as text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from .balance import AcknowledgedFinding, AuditReport, ProductReport


@dataclass(frozen=True, slots=True)
class AuditPage:
    """A report for those who only pass it on."""

    ok: bool
    unsold: int  # units on sale
    text: str
    figures: dict[str, Any]


def page_of(report: AuditReport) -> AuditPage:
    unsold = sum(product.redis.available for product in report.products)
    return AuditPage(report.ok, unsold, show(report), msgspec.to_builtins(report))


def show(report: AuditReport) -> str:
    """The books of each product, then the verdict."""
    parts = [_product(product) for product in report.products]
    parts += ["\n".join(report.remarks)] if report.remarks else []
    parts += [show_acknowledged(report.acknowledged)] if report.acknowledged else []
    if report.ok:
        parts.append("The books balance.")
    else:
        parts.append("\n".join(["The books do NOT balance:", *(f"  - {problem}" for problem in report.problems)]))
    return "\n\n".join(parts)


def show_acknowledged(findings: Sequence[AcknowledgedFinding]) -> str:
    return "\n".join(
        ["Acknowledged:", *(f"  - {done.text} ({done.who}, {done.when}: {done.why})" for done in findings)]
    )


def _product(product: ProductReport) -> str:
    redis, log, charges = product.redis, product.log, product.charges
    in_postgres = ", ".join(
        f"{status} {count.units} ({count.orders} orders)" for status, count in product.postgres.items() if count.orders
    )
    return "\n".join(
        [
            f"Product {product.product_id}: {product.initial} units",
            f"  Redis     available {redis.available} + held {redis.held} + sold {redis.sold}",
            f"  Postgres  {in_postgres or 'no orders'}",
            f"  log       accepted {log.accepted} = confirmed {log.confirmed} + released {log.released}; "
            f"{log.epochs} epochs, {log.versions} versions, {log.gaps} gaps, {log.repeats} repeats",
            f"  charges   captured {charges.captured}, double {charges.double}",
            f"  oversold {product.oversold}, lost {product.lost}, stranded {product.stranded}",
        ]
    )
