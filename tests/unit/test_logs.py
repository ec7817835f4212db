"""Log lines: what a library repeats is told now and then, with how often; every line of ours is told."""

import logging
from collections.abc import Callable

from infra.logs import REMEMBERED, REPEAT_AFTER_S, Repeats


def _line(text: object, *args: object) -> logging.LogRecord:
    return logging.LogRecord("aiokafka.conn", logging.ERROR, __file__, 1, text, args, None)


def test_a_repeated_line_is_told_every_few_seconds_with_how_often(clock: Callable[[float], None]) -> None:
    repeats = Repeats()
    assert [repeats.filter(_line("Unable connect to %s", "a")) for _ in range(100)] == [True] + [False] * 99
    assert repeats.filter(_line("Unable connect to %s", "b")), "another line"
    clock(REPEAT_AFTER_S)
    again = _line("Unable connect to %s", "a")
    assert repeats.filter(again)
    assert again.getMessage() == "Unable connect to a (and 99 times before)"
    clock(REPEAT_AFTER_S)
    alone = _line("Unable connect to %s", "a")
    assert repeats.filter(alone)
    assert alone.getMessage() == "Unable connect to a"


def test_every_line_of_ours_is_told() -> None:
    repeats = Repeats()
    assert all(repeats.filter(_line({"event": "stage stopped"})) for _ in range(10))


def test_what_is_remembered_is_bounded() -> None:
    repeats = Repeats()
    assert all(repeats.filter(_line("line %d", number)) for number in range(3 * REMEMBERED))
    assert len(repeats._logged) <= REMEMBERED
