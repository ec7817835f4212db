"""When a consuming process counts as stuck, and when it only waits."""

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
    return Watchdog(Settings(), "order-stage", idle=lambda: idle, clock=clock, end_process=lambda code: None)


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
