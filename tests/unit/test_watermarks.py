"""Up to which moment a group has read its topic, by nothing but offsets: never newer than the truth, and never for ever behind it."""

from hypothesis import given
from hypothesis import strategies as st

from infra.kafka import watermarks
from infra.kafka.watermarks import Samples


def test_a_group_has_passed_the_last_moment_at_which_the_log_ended_where_it_is() -> None:
    samples = Samples()
    for moment, end in ((100, 5), (200, 7), (300, 9)):
        samples.add(moment, {0: end, 1: 1})
    assert samples.passed_ms({0: 4, 1: 1}) is None
    assert samples.passed_ms({0: 8, 1: 1}) == 200
    assert samples.passed_ms({0: 9, 1: 0}) is None
    assert samples.passed_ms({0: 9, 1: 1}) == 300


def test_what_was_read_in_one_partition_says_nothing_of_another() -> None:
    samples = Samples()
    samples.add(100, {0: 5, 1: 5})
    assert samples.passed_ms({0: 9, 1: 4}) is None
    assert samples.passed_ms({0: 9}) is None


def test_a_log_that_was_wiped_is_told_of_from_its_new_beginning_on() -> None:
    samples = Samples()
    samples.add(100, {0: 1_000})
    samples.add(200, {0: 3})
    assert samples.passed_ms({0: 3}) == 200


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3)), min_size=1, max_size=4 * watermarks.MOST_SAMPLES))
def test_the_answer_is_never_newer_than_the_truth_however_long_a_backlog_lasts(steps: list[tuple[int, int]]) -> None:
    """Records come, nobody reads for the whole time; then a reader comes as far as some moment's end."""
    samples, moment, end, ends = Samples(), 0, 0, {}
    for passed, appended in steps:
        moment, end = moment + passed, end + appended
        ends[moment] = end
        samples.add(moment, {0: end})
        assert len(samples._ends) <= watermarks.MOST_SAMPLES
    read = end // 2
    answer = samples.passed_ms({0: read})
    truth = max((at for at, there in ends.items() if there <= read), default=None)
    assert answer is None or (truth is not None and answer <= truth)
    assert samples.passed_ms({0: end}) == moment
