"""When a consuming process counts as stuck, and when it only waits."""

from dataclasses import dataclass
from typing import Any, cast

import pytest

from infra.settings import Settings
from infra.waits import declared_wait
from infra.watchdog import GROUP_STALL_S, Watchdog


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def watchdog(clock: Clock, *, idle: bool = True) -> Watchdog:
    return Watchdog(Settings(), "order-stage", lambda: idle, lambda: {0, 1}, clock=clock, end_process=lambda code: None)


def looks(dog: Watchdog, clock: Clock, lags: list[int]) -> list[bool]:
    answers = []
    for lag in lags:
        clock.now += GROUP_STALL_S / 2
        answers.append(dog.is_stuck({0: lag, 1: 0}))
    return answers


def test_a_group_that_lags_and_never_moves_is_stuck() -> None:
    clock = Clock()
    assert looks(watchdog(clock), clock, [5, 5, 6, 9])[-1] is True


@pytest.mark.parametrize("lags", [[0, 0, 0, 0], [9, 7, 5, 3], [5, 4, 9, 8]])
def test_a_group_without_lag_or_on_the_move_is_not(lags: list[int]) -> None:
    clock = Clock()
    assert not any(looks(watchdog(clock), clock, lags))


def test_work_in_hand_is_not_being_stuck() -> None:
    clock = Clock()
    assert not any(looks(watchdog(clock, idle=False), clock, [5, 5, 5, 5, 5]))


def test_a_declared_wait_is_alive() -> None:
    clock = Clock()
    dog = watchdog(clock)
    with declared_wait("postgres"):
        assert not any(looks(dog, clock, [5, 5, 5, 5, 5]))
    assert looks(dog, clock, [5, 5, 5])[-1] is True


@dataclass
class Group:
    """Watermarks of a group whose lag does not move; `unheld` are partitions that no member holds."""

    lags: dict[int, int]
    unheld: set[int]

    async def lag(self, _group: str) -> dict[int, int]:
        return self.lags

    async def unassigned(self, _group: str) -> set[int]:
        return self.unheld


@pytest.mark.parametrize(
    ("own", "unheld", "ends"),
    [({0, 1}, set(), True), ({1}, set(), False), (set(), set(), False), (set(), {0}, True)],
    ids=["its own lag", "another member's lag", "a member too many", "nobody's lag"],
)
async def test_a_member_ends_itself_for_partitions_of_its_own_or_of_nobody(
    own: set[int], unheld: set[int], ends: bool
) -> None:
    """While the provider is dead one member waits with what is charged; the others are not stuck for it."""
    clock, ended = Clock(), list[int]()
    dog = Watchdog(Settings(), "payment-stage", lambda: True, lambda: own, clock=clock, end_process=ended.append)
    dog._watermarks = cast(Any, Group({0: 500, 1: 0}, unheld))
    for _ in range(4):
        clock.now += GROUP_STALL_S / 2
        await dog._check()
    assert bool(ended) is ends
