"""What counts as a pause of a partition."""

import pytest

from bench.pauses import longest_gap_s


@pytest.mark.parametrize(
    ("times_ms", "longest_s"),
    [
        ([9_000, 11_000, 12_000, 19_500], 7.5),
        ([6_000, 13_000, 16_000, 20_000], 7.0),  # began before the window
        ([9_900, 10_500, 11_000], 9.0),  # has not ended with it
        ([1_000, 2_000, 9_500, 15_000, 20_000, 60_000], 5.5),  # those outside of it are not its
        ([], 10.0),
        ([25_000], 10.0),
    ],
)
def test_a_pause_is_the_longest_gap_that_reaches_into_the_window(times_ms: list[int], longest_s: float) -> None:
    assert longest_gap_s(times_ms, 10_000, 20_000) == longest_s
