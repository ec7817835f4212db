"""`thrones incident acknowledge`: records the current findings of the audit and the proof in the trail and on the log.

A finding is acknowledged by its exact text: a later finding with another text fails as before.
"""

from collections.abc import Sequence

from consumers.analysis.proof import prove
from consumers.audit.audit import MOVED, NOT_QUIET, audit
from infra.kafka.publisher import Publisher
from sale.operations.operations import OperationRefused, Stores
from sale.tables.queries import SQL
from schemas.codec import encode
from schemas.events import SaleControlled
from schemas.ids import ProductId
from schemas.topics import SALE_ACTIONS

AUDIT_WAIT_S = 30.0
FINDINGS_MOST = 2_000  # the broker's limit is about a megabyte per record


async def acknowledge(to: Stores, product: ProductId, who: str, why: str) -> list[str]:
    """Acknowledges and returns the current findings. Raises OperationRefused if there are none or the system is not quiet."""
    findings = await _findings(to, product)
    if not findings:
        raise OperationRefused(f"product {product}: the books balance, there is nothing to acknowledge")
    if any(text == MOVED or text.startswith(NOT_QUIET) for text in findings):
        raise OperationRefused(f"product {product} is not at rest: {findings[0]}")
    if len(findings) > FINDINGS_MOST:
        raise OperationRefused(
            f"product {product}: {len(findings)} findings, at most {FINDINGS_MOST} can be acknowledged"
        )
    row = await to.pool.fetchrow(SQL.add_acknowledgement, product, who, why, findings)
    assert row is not None
    await _publish(to.publisher, product, row["id"], row["at_ms"], who, why, findings)
    await to.pool.execute(SQL.mark_sale_actions_published, [row["id"]])  # else the relay publishes it again
    return findings


async def _findings(to: Stores, product: ProductId) -> list[str]:
    report = await audit(to.settings, product, AUDIT_WAIT_S)
    return list(dict.fromkeys([*report.problems, *(await prove(to.settings, product)).problems]))


async def _publish(
    publisher: Publisher, product: ProductId, id_: int, at_ms: int, who: str, why: str, findings: Sequence[str]
) -> None:
    event = SaleControlled(
        action_id=id_,
        product_id=product,
        action="acknowledge",
        who=who,
        why=why,
        at_ms=at_ms,
        findings=tuple(findings),
    )
    await publisher.publish(SALE_ACTIONS, str(product), encode(event))
