"""The simulation can fail: each of these bugs, planted alone, is found within a few seeds."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

import pytest

from infra.inventory.pipeliner import SCRIPTS
from infra.inventory.rebuild import _Rebuild
from infra.payment_provider import Declined, Unknown
from infra.settlement import SettlementDesk

from .ports import ProviderPort
from .world import Violation, World

SEEDS = 60
pytestmark = pytest.mark.timeout(400)


def _changed(script: str, old: str, new: str) -> AbstractContextManager[Any]:
    body = SCRIPTS[script]
    assert old in body, f"{script}.lua has changed: plant this bug anew"
    return patch.dict("tests.simulation.redis_model.INSTEAD_OF", {body: body.replace(old, new)})


@contextmanager
def acknowledged_before_it_is_inserted() -> Iterator[None]:
    async def run(self: Any) -> None:
        while True:
            batch = await self._inbox.take(500)
            self._acks.finish(batch)
            await self._process(batch)

    with patch("streams.order_stage.OrderStage.run", run):
        yield


def released_as_often_as_asked() -> AbstractContextManager[Any]:
    return _changed("settle", "if state ~= 'h' then", "if state ~= 'h' and ARGV[2] ~= 'r' then")


def entry_deleted_before_the_end_is_acknowledged() -> AbstractContextManager[Any]:
    return _changed(
        "settle",
        "redis.call('ZADD', KEYS[3], now",
        "redis.call('HDEL', KEYS[2], ARGV[1])\nredis.call('ZADD', KEYS[3], now",
    )


def reserved_without_asking_the_key() -> AbstractContextManager[Any]:
    return _changed("reserve", "local known = redis.call('GET', KEYS[6])", "local known = false")


def reserved_without_asking_for_the_run() -> AbstractContextManager[Any]:
    return _changed("reserve", "if stock[1] ~= run or stock[2] == 'closed'", "if stock[2] == 'closed'")


@contextmanager
def an_unknown_charge_taken_as_declined() -> Iterator[None]:
    real = ProviderPort.charge

    async def charge(self: Any, *args: Any) -> Any:
        outcome = await real(self, *args)
        return Declined("no answer") if isinstance(outcome, Unknown) else outcome

    with patch.object(ProviderPort, "charge", charge):
        yield


@contextmanager
def ended_without_waiting_for_the_news() -> Iterator[None]:
    async def publish(self: Any, events: Any) -> None:
        return None

    with patch.object(SettlementDesk, "_publish", publish):
        yield


@contextmanager
def rebuilt_without_what_redis_still_holds() -> Iterator[None]:
    async def survivors(*_: Any) -> Any:
        return
        yield

    with patch("infra.inventory.rebuild.survivors", survivors):
        yield


@contextmanager
def rebuilt_from_rows_read_before_the_offsets() -> Iterator[None]:
    """Rows of one instant; the epoch drawn, and the offsets read, only later."""
    real = _Rebuild._attempt

    async def attempt(self: Any, offsets: Any) -> Any:
        self._connection.stale = self._connection.world.postgres.snapshot()
        await asyncio.sleep(1.5)
        return await real(self, offsets)

    with patch.object(_Rebuild, "_attempt", attempt):
        yield


BUGS: list[Callable[[], AbstractContextManager[Any]]] = [
    acknowledged_before_it_is_inserted,
    released_as_often_as_asked,
    entry_deleted_before_the_end_is_acknowledged,
    reserved_without_asking_the_key,
    reserved_without_asking_for_the_run,
    an_unknown_charge_taken_as_declined,
    ended_without_waiting_for_the_news,
    rebuilt_without_what_redis_still_holds,
    rebuilt_from_rows_read_before_the_offsets,
]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_a_planted_bug_is_found(bug: Callable[[], AbstractContextManager[Any]]) -> None:
    with bug():
        assert any(_is_found_by(seed) for seed in range(SEEDS)), f"{bug.__name__}: not found in {SEEDS} seeds"


def _is_found_by(seed: int) -> bool:
    try:
        return not World(seed).run().ok
    except Violation:
        return True
