"""Measures how long a stage pauses when a member is added, removed or killed, on the local stack under a steady load.

    python -m bench.pauses [--stage payment-stage] [--rate 100] [--json]

A pause is the longest time in which a partition of `order-status` got no terminal status, by the broker's append times: the
extra wait of a buyer. Every change is compared with a window without a change.
"""

import asyncio
import os
import signal
import statistics
from bisect import bisect_right
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Any

import msgspec
import typer

from bench.buyers import run
from bench.own_stack import ensure_tokens, get, own_url, thrones
from bench.plan import Plan
from infra.commands import SingleCommand
from infra.kafka.client import make_consumer
from infra.local.config import load_config
from infra.local.readiness import STABLE, group_members
from infra.local.stack import use_stack_env
from infra.settings import get_settings
from infra.supervision import registry
from infra.supervision.place import default_state_dir
from infra.supervision.scaling import scale
from schemas.clock import now_ms
from schemas.codec import decode
from schemas.events import OrderStatusChanged
from schemas.order_state import TERMINAL
from schemas.topics import ORDER_STATUS

WINDOW_S = 30.0  # the minimum: the session of a dead member ends after 10 s
WARM_UP_S = 10.0
SCALE_MAX_S = 180.0
STOCK = 1_000_000
USERS = 500


class Pause(msgspec.Struct, frozen=True):
    """One change and its pauses, in seconds."""

    change: str
    by_partition_s: dict[int, float]

    @property
    def longest_s(self) -> float:
        return max(self.by_partition_s.values())

    @property
    def median_s(self) -> float:
        return statistics.median(self.by_partition_s.values())


@dataclass(slots=True)
class Ends:
    """The times at which each partition got terminal statuses (milliseconds)."""

    at_ms: dict[int, list[int]] = field(default_factory=lambda: {p: [] for p in range(ORDER_STATUS.partitions)})

    async def follow(self) -> None:
        consumer = make_consumer(get_settings(), ORDER_STATUS.name, auto_offset_reset="latest")
        await consumer.start()
        try:
            async for record in consumer:
                event = decode(record.value, tuple(record.headers))
                if isinstance(event, OrderStatusChanged) and event.status in TERMINAL:
                    self.at_ms[record.partition].append(record.timestamp)
        finally:
            await consumer.stop()

    def pause(self, change: str, from_ms: int, until_ms: int) -> Pause:
        """The longest gaps that overlap this window."""
        return Pause(change, {p: longest_gap_s(times, from_ms, until_ms) for p, times in self.at_ms.items()})


def longest_gap_s(times_ms: list[int], from_ms: int, until_ms: int) -> float:
    """The longest gap between two of the (ascending) times, or a time and the window's end. It may begin before the window."""
    first = max(0, bisect_right(times_ms, from_ms) - 1)
    within = [*times_ms[first : bisect_right(times_ms, until_ms)], until_ms]
    return max((later - earlier for earlier, later in pairwise(within)), default=until_ms - from_ms) / 1000


@asynccontextmanager
async def _steady_load(rate: float) -> Any:
    """A separate sale that runs until the end of the measurement."""
    url = own_url()
    product = 1 + max((int(each["id"]) for each in get(f"{url}/api/products")[1]["products"]), default=1)
    await asyncio.to_thread(
        thrones, "product", "create", "--id", str(product), "--name", "P", "--price", "9.99", "--stock", str(STOCK)
    )
    tokens = str(await asyncio.to_thread(ensure_tokens, USERS, url))
    stop = asyncio.Event()
    plan = Plan(base_url=url, tokens=tokens, mode="open", seconds=600.0, rate=rate, products=(product,))
    load = asyncio.create_task(run(plan, stop))
    try:
        yield
    finally:
        stop.set()
        await load


def _kill(stage: str) -> None:
    """Kill the member with the highest number; the supervisor starts a new one."""
    newest = max(
        (row for row in registry.live_rows(default_state_dir()) if row["role"] == stage),
        key=lambda row: int(row["member"]),
    )
    os.kill(newest["pid"], signal.SIGKILL)


async def _share_partitions(stage: str, members: int, other_than: frozenset[str] = frozenset()) -> frozenset[str]:
    """Wait until `members` members, not all of them in `other_than`, have a partition each. Returns their ids."""
    config = load_config(default_state_dir())
    assert config is not None
    async with asyncio.timeout(SCALE_MAX_S):
        while True:
            state, held = (await group_members(config))[stage]
            ids = frozenset(held)
            if state == STABLE and len(ids) == members and all(held.values()) and ids != other_than:
                return ids
            await asyncio.sleep(0.5)


async def measure(stage: str, rate: float) -> list[Pause]:
    """Two members: no change, then one is added, removed, added again and killed."""

    async def to(members: int) -> None:
        await asyncio.to_thread(scale, default_state_dir(), stage, members, SCALE_MAX_S)
        await _share_partitions(stage, members)

    async def nothing() -> None: ...

    async def kill() -> None:
        before = await _share_partitions(stage, 2)
        _kill(stage)
        await _share_partitions(stage, 2, other_than=before)

    changes: list[tuple[str, Callable[[], Awaitable[None]]]] = [
        ("nothing changed", nothing),
        ("member added (2 to 3)", lambda: to(3)),
        ("member removed (SIGTERM, 3 to 2)", lambda: to(2)),
        ("member killed (-9, of 2), and its successor", kill),
    ]
    ends, pauses = Ends(), []
    await to(2)
    following = asyncio.create_task(ends.follow())
    try:
        async with _steady_load(rate):
            await asyncio.sleep(WARM_UP_S)
            for change, do in changes:
                from_ms = now_ms()
                await asyncio.gather(do(), asyncio.sleep(WINDOW_S))
                pauses.append(ends.pause(change, from_ms, now_ms()))
                print(show(pauses[-1]), flush=True)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await to(1)
    return pauses


def show(pause: Pause) -> str:
    return f"{pause.change:<46} longest {pause.longest_s:6.1f} s   median partition {pause.median_s:6.1f} s"


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(cls=SingleCommand)
def main(
    stage: Annotated[str, typer.Option("--stage", help="order-stage or payment-stage.")] = "payment-stage",
    rate: Annotated[float, typer.Option("--rate", min=12, max=1_000, help="Orders a second.")] = 100.0,
    as_json: Annotated[bool, typer.Option("--json", help="And the result as JSON in the last line.")] = False,
) -> None:
    """Measure the pauses on the running local stack.

    Example: python -m bench.pauses --stage order-stage --rate 60
    """
    if not use_stack_env():
        raise SystemExit("there is no stack here: `make up` starts one")
    pauses = asyncio.run(measure(stage, rate))
    if as_json:
        print(msgspec.json.encode(pauses).decode())


if __name__ == "__main__":
    app()
