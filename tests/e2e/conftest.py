"""The running stack in the reference's weather."""

import pytest

from .stack import BAD_WEATHER, Stack


@pytest.fixture
def stack(whole_stack: Stack) -> Stack:
    whole_stack.set_weather(BAD_WEATHER)
    return whole_stack


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The look through the logs comes after all that could have been logged."""
    items.sort(key=lambda item: item.path.name == "test_logs.py")
