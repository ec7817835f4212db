"""Ten thousand clients watch one product on one `thrones sse` worker while its stock changes 1,000 times a second.

The stock is changed directly in Redis (a unit moves to `held` and back), so that the stream is measured and not the sale. Each
change has a version. The delay of a value at a client counts from the oldest change that the client had not received.
"""

import asyncio
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import msgspec
import psutil

from bench.own_stack import thrones
from bench.tally import percentiles
from infra.supervision.place import REPOSITORY
from sale.books import keys

from .extra import Extra, running
from .report import Report
from .size import Size
from .stack import MeasuredSale, Stack
from .stream_clients import READY, Seen, Watch

MEASURED = 200
CHANGES_PER_S = 1_000
TURN_S = 0.01
CONNECT_DEADLINE_S = 120.0
SETTLE_S = 2.0  # after the last connection


async def measure(stack: Stack, report: Report, size: Size) -> None:
    sale = stack.sale(report, "stock stream", stock=1_000)
    async with running("sse", 1, stack.state_dir) as server:
        worker = psutil.Process(server.pids[0])
        empty_kb = worker.memory_info().rss / 1024
        watching = [
            await _watch(server, sale, size.clients - MEASURED, measured=False),
            await _watch(server, sale, MEASURED, measured=True),
        ]
        await asyncio.sleep(SETTLE_S)
        full_kb = worker.memory_info().rss / 1024
        cpu_s, started_s = sum(worker.cpu_times()[:2]), time.monotonic()
        changed = await _change(sale, size.stream_s)
        took_s = time.monotonic() - started_s
        cpu_share = (sum(worker.cpu_times()[:2]) - cpu_s) / took_s
        crowd, measured = [await _seen(process) for process in watching]
    # New books. The audit would miss the old ones' versions on the log: these changes belong to no orders.
    thrones("stock", "rebuild", str(sale.product))
    delays = [delay for values in measured.values for delay in delays_ms(changed, values)]
    _record_results(report, size, delays, crowd, measured, full_kb - empty_kb)
    report.notes["stock stream: changes/s"] = round(len(changed) / took_s, 1)
    report.notes["stock stream: CPU of its process, cores"] = round(cpu_share, 2)


def _record_results(
    report: Report, size: Size, delays: list[float], crowd: Seen, measured: Seen, grown_kb: float
) -> None:
    spread = percentiles(delays)
    if spread is None:
        raise RuntimeError("no client was told of a change")
    report.latencies[f"stock change to client, {size.clients:,} clients"] = spread
    report.notes["stock stream: clients"] = size.clients
    report.notes["stock stream: connections lost"] = crowd.lost + measured.lost
    report.notes["stock stream: events/s"] = round((crowd.events + measured.events) / size.stream_s)
    report.notes["stock stream: memory a client, KB"] = round(grown_kb / size.clients, 1)
    if size.clients >= 10_000:  # the goals are for this number
        report.add("stream_p99", spread.p99)
        report.add("stream_kb", grown_kb / size.clients)


def delays_ms(changed: Mapping[int, float], told: Sequence[tuple[int, float]]) -> Iterable[float]:
    """The delay of each received value since the oldest change that the client had not received. Monotonic seconds."""
    for (before, _), (version, told_s) in pairwise(told):
        oldest = before + 1
        if version >= oldest and oldest in changed:
            yield (told_s - changed[oldest]) * 1000


async def _watch(server: Extra, sale: MeasuredSale, clients: int, *, measured: bool) -> asyncio.subprocess.Process:
    """Returns when all are connected. Raises RuntimeError if they cannot connect."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.performance.stream_clients",
        cwd=REPOSITORY,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(msgspec.json.encode(Watch(server.port, sale.product, clients, measured)) + b"\n")
    async with asyncio.timeout(CONNECT_DEADLINE_S):
        if await process.stdout.readline() != READY:
            raise RuntimeError("the stream's clients could not connect; their output is above")
    return process


async def _seen(process: asyncio.subprocess.Process) -> Seen:
    out, _ = await process.communicate(b"\n")
    return msgspec.json.decode(out, type=Seen)


async def _change(sale: MeasuredSale, seconds: float) -> dict[int, float]:
    """Change the stock on a timetable, catching up when late. Returns the time of each version."""
    changed: dict[int, float] = {}
    started_s, units = time.monotonic(), 1
    while (passed_s := time.monotonic() - started_s) < seconds or units < 0:
        due = max(1, int(passed_s * CHANGES_PER_S) - len(changed))
        asked_s = time.monotonic()
        for version in await _change_once(sale, units, min(due, CHANGES_PER_S)):
            changed[version] = asked_s
        units = units if due % 2 == 0 else -units
        await asyncio.sleep(TURN_S)
    return changed


async def _change_once(sale: MeasuredSale, units: int, times: int) -> list[int]:
    key = keys.stock(sale.product)
    async with sale.stack.redis.pipeline(transaction=True) as pipe:
        for number in range(times):
            step = units if number % 2 == 0 else -units
            pipe.hincrby(key, "available", -step)
            pipe.hincrby(key, "held", step)
            pipe.hincrby(key, "version", 1)
        replies = await pipe.execute()
    return [int(version) for version in replies[2::3]]
