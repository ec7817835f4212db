"""What gateways make of the stages' reports: whose wait counts, who is missing, and how many purchases are refused."""

from typing import Any

import msgspec
import pytest

from gateway.buying.expected_wait import FORGOTTEN_S, FRESH_S, ExpectedWait, StageWaits
from gateway.http.problems import Problem
from sale.books.pipeline import MemberReport

TICK_S = 0.25


class Stages:
    """Members that report every quarter of a second, until they are stopped."""

    def __init__(self, **members: tuple[int, int]) -> None:
        """Partitions of six and wait in ms by name; `order_1` is member 1 of the stage `order`."""
        self.waits, self.members, self.beat, self.now_s = StageWaits(), members, 0, 100.0
        self.stopped: dict[str, int] = {}

    def after(self, seconds: float) -> float:
        for _ in range(round(seconds / TICK_S)):
            self.now_s, self.beat = self.now_s + TICK_S, self.beat + 1
            told = self.waits.update(self._reports(), self.now_s)
        return told

    def stop(self, member: str) -> None:
        self.stopped[member] = self.beat

    def _reports(self) -> dict[tuple[str, str], MemberReport]:
        return {
            (name.split("_")[0], name.split("_")[1]): MemberReport(self.stopped.get(name, self.beat), held, 6, wait_ms)
            for name, (held, wait_ms) in self.members.items()
        }


def test_no_stage_no_wait() -> None:
    assert StageWaits().update({}, 1.0) == 0.0


def test_stages_add_up_and_of_a_stage_the_slowest_member_counts() -> None:
    assert Stages(order_1=(6, 500), payment_1=(3, 200), payment_2=(3, 1_500)).after(1) == pytest.approx(2.0)


def test_of_a_stage_that_hangs_the_time_since_it_reported_counts() -> None:
    stages = Stages(order_1=(6, 20), payment_1=(6, 0))
    assert stages.after(1) == pytest.approx(0.02)
    stages.stop("order_1")
    assert stages.after(FRESH_S) == pytest.approx(0.02), "a late report is none that is missing"
    assert stages.after(5) == pytest.approx(5.0, abs=2 * TICK_S)
    del stages.stopped["order_1"]
    assert stages.after(TICK_S) == pytest.approx(0.02)


def test_one_member_that_hangs_is_enough_until_the_other_has_its_partitions() -> None:
    stages = Stages(order_1=(3, 0), order_2=(3, 0))
    stages.after(1)
    stages.stop("order_2")
    assert stages.after(4) > 2.0
    stages.members["order_1"] = (6, 300)
    assert stages.after(TICK_S) == pytest.approx(0.3)


def test_while_partitions_change_hands_the_wait_is_short() -> None:
    stages = Stages(order_1=(6, 0))
    stages.after(1)
    stages.members["order_1"] = (0, 0)
    assert 0 < stages.after(0.5) <= 0.75


def test_what_has_not_reported_for_long_is_forgotten() -> None:
    stages = Stages(order_1=(6, 0), order_2=(0, 0))
    stages.stop("order_2")
    stages.after(FORGOTTEN_S)
    assert list(stages.waits.forgotten(stages.now_s)) == []
    stages.after(1)
    assert list(stages.waits.forgotten(stages.now_s)) == [("order", "2")]


class _Redis:
    """One hash."""

    def __init__(self, wait_ms: int) -> None:
        self.fields: dict[bytes, bytes] = {
            b"order-stage:1": msgspec.json.encode(MemberReport(1, 6, 6, wait_ms)),
            b"of-another-release": b"?",
        }

    async def hgetall(self, _name: str) -> dict[bytes, bytes]:
        return dict(self.fields)


@pytest.mark.parametrize(
    ("wait_s", "least", "most"),
    [(0.0, 0, 0), (2.4, 0, 0), (3.75, 800, 1_200), (5.0, 2_000, 2_000), (60.0, 2_000, 2_000)],
)
async def test_from_half_of_the_bound_on_some_purchases_are_refused_and_from_the_whole_on_all(
    wait_s: float, least: int, most: int
) -> None:
    server: Any = _Redis(round(1000 * wait_s))
    expected = ExpectedWait(server, 5.0)
    await expected.refresh(10.0)
    refused = [problem for problem in (_asked(expected) for _ in range(2_000)) if problem]
    assert least <= len(refused) <= most
    for problem in refused:
        assert (problem.code, problem.answer().status) == ("busy", 503)
        assert min(wait_s, 30) <= int(problem.answer().headers["Retry-After"]) <= min(wait_s + 3, 30)


def _asked(expected: ExpectedWait) -> Problem | None:
    try:
        expected.admit()
    except Problem as problem:
        return problem
    return None
