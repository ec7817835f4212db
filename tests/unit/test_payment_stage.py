"""What finished together, when copies of one request are in it."""

from typing import Any, cast

import pytest

from sale.settlement import Verdict
from schemas.ids import OrderId
from schemas.order_state import Status
from streams.payment_stage import Finished, one_each

ORDER, OTHER = OrderId("o1"), OrderId("o2")
CAPTURED = Verdict(ORDER, Status.CONFIRMED, charge_id="ch_1")
UNKNOWN = Verdict(ORDER, Status.NEEDS_RECONCILIATION, reason="timeout")


def finished(verdict: Verdict | None, *records: str) -> Finished:
    return Finished(cast(Any, list(records)), verdict)


@pytest.mark.parametrize("verdicts", [(CAPTURED, UNKNOWN), (UNKNOWN, CAPTURED), (CAPTURED, CAPTURED)])
def test_copies_of_an_order_are_settled_once_and_all_their_records_acknowledged(
    verdicts: tuple[Verdict, Verdict],
) -> None:
    """Else the records of one copy stay open, and their partition is never committed past them."""
    first, second = verdicts
    other = finished(Verdict(OTHER, Status.PAYMENT_FAILED), "c")
    decided = one_each([finished(first, "a"), finished(None, "x"), other, finished(second, "b")])
    assert decided == {ORDER: finished(CAPTURED, "a", "b"), OTHER: other}
