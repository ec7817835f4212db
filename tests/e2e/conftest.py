"""One whole stack for all end-to-end tests of a session; it is stopped and deleted at the end."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .stack import BAD_WEATHER, Stack


@pytest.fixture(scope="session")
def whole_stack() -> Iterator[Stack]:
    with tempfile.TemporaryDirectory(prefix="thrones-e2e-", ignore_cleanup_errors=True) as folder:
        running = Stack(Path(folder) / "state")
        try:
            running.up()
            yield running
        finally:
            running.down()


@pytest.fixture
def stack(whole_stack: Stack) -> Stack:
    """The running stack in the reference's weather."""
    whole_stack.set_weather(BAD_WEATHER)
    return whole_stack
