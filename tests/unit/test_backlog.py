"""How long a queue's records will wait, from counts: idle, busy, growing, stopped, and at the beginning of a rush."""

import pytest

from streams.backlog import ROUGH, Backlog, QueueCount

TICK_S = 0.25


def _waits(*counts: tuple[int, int]) -> list[float]:
    """The waits told for (waiting, passed), a quarter of a second apart."""
    backlog = Backlog()
    return [backlog.wait_s(QueueCount(*count), number * TICK_S) for number, count in enumerate(counts)]


def test_nothing_waits_for_nothing() -> None:
    assert _waits((0, 0), (0, 100), (0, 5_000)) == [0.0, 0.0, 0.0]


def test_a_steady_queue_waits_for_what_stands_before_it() -> None:
    """400 wait, 200 a second pass: two seconds."""
    counts = [(400, 50 * n) for n in range(40)]
    assert _waits(*counts)[-1] == pytest.approx(2.0, rel=0.05)


def test_a_queue_that_grows_is_told_longer_than_its_oldest_record_has_waited() -> None:
    """1,000 a second come, 250 pass. After 4 s the oldest is 3 s old, and the last one has 12 s to go."""
    counts = [(round(750 * n * TICK_S), round(250 * n * TICK_S)) for n in range(17)]
    assert _waits(*counts)[-1] == pytest.approx(12.0, rel=0.1)


def test_a_stopped_queue_waits_longer_and_longer() -> None:
    told = _waits((0, 100), *[(50, 100)] * 24)
    assert told[-1] == pytest.approx(24 * TICK_S)
    assert told == sorted(told)


def test_the_calm_before_a_rush_is_not_taken_for_its_rate() -> None:
    """Ten a second came, and then a thousand at once: at ten a second they would wait for 100 s."""
    calm = [(1, round(2.5 * n)) for n in range(20)]
    assert _waits(*calm, (1_000, 50))[-1] <= ROUGH * 2 * TICK_S
    assert _waits(*calm, (1_000, 50), (500, 550), (1, 1_050))[-1] < TICK_S
