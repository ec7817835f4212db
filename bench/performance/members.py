"""Orders a second with 1, 2 and 4 members of each stage, each limited to the same small share of a core.

So the members are the bottleneck, not the machine, and the result shows whether they hinder each other.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

from bench.own_stack import OwnStackFailed, thrones
from infra.kafka.offsets import Offsets
from infra.local.config import load_config
from infra.local.readiness import STABLE, group_members
from infra.supervision import registry
from schemas.topics import ORDER_STAGE_GROUP, PAYMENT_STAGE_GROUP, PAYMENTS

from .extra import running
from .fill import Filler, filler
from .quota import NoQuota, limited
from .report import MembersPoint, Report
from .size import Size
from .stack import FAIR, MeasuredSale, Stack, TooSlow

MEMBERS = (1, 2, 4)
# Small enough that four members leave room for all other processes.
SHARES = {ORDER_STAGE_GROUP: 0.05, PAYMENT_STAGE_GROUP: 0.10, "gateway": 0.06}
WORK = {ORDER_STAGE_GROUP: 4, PAYMENT_STAGE_GROUP: 1}  # an order is cheap for the first, expensive for the second
# Six partitions on four members are 2, 2, 1, 1: when the members with one have finished, two thirds are done.
WARM, DONE = 0.1, 0.6
POLL_INTERVAL_S = 0.05
DEADLINE_S = 120.0
GATEWAY_S = 6.0
# The same number before each measurement: one worker with all orders would have larger batches and cheaper orders.
CONNECTIONS_A_WORKER = 16

Progress = Callable[[], Awaitable[int]]


async def measure(stack: Stack, report: Report, size: Size) -> None:
    offsets, sales = Offsets(stack.settings), list[MeasuredSale]()
    try:
        async with filler(stack) as fill:
            for stage in WORK:
                points = _points(stage)
                # In rounds, so that a slow phase of the machine does not affect all repetitions of one point.
                for point in points * size.member_repeats:
                    sales.append(stack.sale(report, f"{point.members} members of {stage}"))
                    orders = size.member_orders * WORK[stage] * point.members
                    point.per_s.append(await _stage(sales[-1], fill, offsets, stage, point.members, orders))
                report.members += points
                await _scale(stack, stage, 1)
        points = _points("gateway")
        for point in points * size.member_repeats:
            sales.append(stack.sale(report, f"{point.members} gateway workers"))
            point.per_s.append(await _gateway(sales[-1], point.members))
        report.members += points
        await asyncio.gather(*(sale.check_books() for sale in sales))
    except NoQuota as error:
        report.failures.append(f"growth by members: {error}")
        return
    finally:
        await offsets.close()
    report.add("growth_4", 100 * min(linearity(report.members).values()))


def _points(stage: str) -> list[MembersPoint]:
    """Not yet measured."""
    return [MembersPoint(stage, members, SHARES[stage], []) for members in MEMBERS]


def linearity(points: list[MembersPoint]) -> dict[str, float]:
    """By stage: the rate of the most members relative to that multiple of one member's rate."""
    alone = {point.stage: point.median_per_s for point in points if point.members == 1}
    most = max(point.members for point in points)
    return {p.stage: p.median_per_s / (most * alone[p.stage]) for p in points if p.members == most}


async def _stage(sale: MeasuredSale, fill: Filler, offsets: Offsets, stage: str, members: int, orders: int) -> float:
    sale.stack.weather(**FAIR)
    pids = await _scale(sale.stack, stage, members)
    before = sum((await offsets.ends(PAYMENTS)).values())

    async def requested() -> int:
        return sum((await offsets.ends(PAYMENTS)).values()) - before

    async def settled() -> int:
        return (await sale.counts()).settled

    with limited([[pid] for pid in pids], SHARES[stage]):
        async with asyncio.TaskGroup() as group:
            filling = group.create_task(fill.fill(sale, orders))
            rate = await _rate(sale, requested if stage == ORDER_STAGE_GROUP else settled, orders)
            starved = not filling.done()
    await sale.wait_until_ended()
    if starved:
        raise TooSlow(f"{sale.name}: they were faster than orders could be put before them")
    return round(rate, 1)


async def _rate(sale: MeasuredSale, progress: Progress, orders: int) -> float:
    """The rate between two shares of the work. Raises TooSlow."""
    first, started_s = await _wait_for(sale, progress, orders * WARM)
    last, ended_s = await _wait_for(sale, progress, orders * DONE)
    return (last - first) / (ended_s - started_s)


async def _wait_for(sale: MeasuredSale, progress: Progress, wanted: float) -> tuple[int, float]:
    until = time.monotonic() + DEADLINE_S
    while (done := await progress()) < wanted:
        if time.monotonic() > until:
            raise TooSlow(f"{sale.name}: {done} orders done, {wanted:.0f} wanted")
        await asyncio.sleep(POLL_INTERVAL_S)
    return done, time.monotonic()


async def _scale(stack: Stack, stage: str, members: int) -> list[int]:
    """Scale to `members` members that all have partitions; returns their pids. Raises TooSlow."""
    await asyncio.to_thread(thrones, "scale", stage, str(members))
    config = load_config(stack.state_dir)
    if config is None:
        raise OwnStackFailed("the stack has gone")
    until = time.monotonic() + DEADLINE_S
    while True:
        state, held = (await group_members(config)).get(stage, ("absent", {}))
        if state == STABLE and len(held) == members and all(held.values()):
            return [row["pid"] for row in registry.live_rows(stack.state_dir) if row["role"] == stage]
        if time.monotonic() > until:
            raise TooSlow(f"{stage}: {len(held)} of {members} members have partitions ({state})")
        await asyncio.sleep(0.3)


async def _gateway(sale: MeasuredSale, workers: int) -> float:
    async with running("gateway", workers, sale.stack.state_dir) as extra:
        with limited([[pid] for pid in extra.pids], SHARES["gateway"]):
            result = await sale.buy(
                mode="closed", connections=CONNECTIONS_A_WORKER * workers, seconds=GATEWAY_S, base_url=extra.url
            )
    await sale.wait_until_ended()
    return result.accepted_per_s
