"""docs/reliability.md against the results it is made from, and how a result becomes a line."""

from tests.chaos.page import BEGIN, END, PAGE, render
from tests.chaos.results import FaultLine, Measured, RowResult, read
from tests.chaos.rows import Row
from tests.chaos.table import BY_NAME, ROWS, SHORT

ROW = Row("nap", "the stack takes a nap", "I1-I9")


def result(seed: int, *, violations: tuple[str, ...] = (), again_s: float = 2.0) -> RowResult:
    return RowResult(
        row="nap",
        seed=seed,
        at="2026-11-26T12:00:00+00:00",
        commit="abc",
        cores=2,
        load_average=(1.5, 9.0),
        seconds=30.0,
        offered_per_s=100.4,
        accepted_per_s=99.6,
        orders=3_000,
        outcomes={"A": 3_000},
        answers={"202": 3_000},
        faults=[FaultLine(1.0, 2.0, "nap")],
        figures=[Measured("awake after", again_s, "s", "<= 3", again_s <= 3)],
        quiet_s=1.0,
        violations=list(violations),
    )


def test_the_page_is_what_its_results_make() -> None:
    """`python -m tests.chaos.page` was run after the last result."""
    assert PAGE.read_text() == render(PAGE.read_text(), ROWS, read())


def test_every_result_is_of_a_row_that_there_is() -> None:
    assert {result.row for result in read()} <= BY_NAME.keys()


def test_rows_have_names_of_their_own_and_ten_or_more_of_them_are_in_make_test() -> None:
    assert len(BY_NAME) == len(ROWS)
    assert len(SHORT) >= 10


def test_a_row_shows_every_seed_with_its_figures_and_what_was_missed_and_violated() -> None:
    page = f"Before.\n{BEGIN}\nof last week\n{END}\nAfter.\n"
    made = render(page, [ROW], [result(1), result(2, violations=("oversold",), again_s=4.0)])
    assert made.startswith("Before.\n")
    assert made.endswith("After.\n")
    assert "last week" not in made
    assert "| `nap` | the stack takes a nap | I1-I9 | 1, 2 | 1 | 100, 100; 100, 100 |" in made
    assert "awake after: 2, 4 s (<= 3) **missed** |" in made
    assert "- `nap`, seed 2 (abc, load average 1.5 to 9 on 2 cores): oversold." in made
    assert "2 runs of 1 rows; 1 with a violation." in made
    assert render(made, [ROW], [result(1)]).count("| `nap` |") == 1


def test_a_row_that_was_never_run_says_so() -> None:
    assert "| `nap` | the stack takes a nap | I1-I9 | not run |" in render(f"{BEGIN}{END}", [ROW], [])
