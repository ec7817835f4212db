"""The running stack in the reference's weather."""

import pytest

from .stack import BAD_WEATHER, Stack


@pytest.fixture
def stack(whole_stack: Stack) -> Stack:
    whole_stack.set_weather(BAD_WEATHER)
    return whole_stack
