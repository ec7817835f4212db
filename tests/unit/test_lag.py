"""What operators are told of lag and of the number of members."""

import pytest

from consumers.lag import GroupLag, drain_s, show_live
from infra.supervision.scaling import scaling_warning


@pytest.mark.parametrize(
    ("lag", "rate", "seconds"), [(0, None, 0.0), (100, 50.0, 2.0), (100, 0.0, None), (100, -5.0, None), (9, None, None)]
)
def test_a_group_that_does_not_catch_up_has_no_drain_time(lag: int, rate: float | None, seconds: float | None) -> None:
    assert drain_s(lag, rate) == seconds


def test_a_member_without_partitions_is_told_so() -> None:
    text = show_live([GroupLag("order-stage", {0: 7, 1: 0}, 3.5, 2.0, {"a#1": [0, 1], "a#2": []})])
    assert "empty in 2.0 s" in text
    assert "0: 7, 1: 0" in text
    assert "nothing to do" in text
    assert "nobody" in show_live([GroupLag("order-stage", {0: 0}, None, 0.0, {})])


def test_a_number_of_members_that_is_no_use_is_remarked_on() -> None:
    assert scaling_warning("order-stage", 6) == ""
    assert "1 of them have nothing to do" in scaling_warning("order-stage", 7)
    assert "orders wait" in scaling_warning("payment-stage", 0)
