"""What each part can do alone on this machine today, and which share of that the whole system reaches.

Machines and days differ by a factor of two; a figure as a share of its limit can be compared nevertheless.
"""

import asyncio
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
from aiokafka import AIOKafkaConsumer

from bench import buyers
from bench.micro import BATCH, reserve, servers, wishes
from bench.plan import Plan
from infra.kafka.client import make_consumer
from infra.kafka.publisher import Publisher
from infra.redis.client import Redis
from infra.redis.trips import Command
from infra.settings import SigningSettings, get_settings, get_signing_settings
from infra.supervision.place import REPOSITORY
from sale.accounts.tokens import sign_all
from sale.books.inventory import Inventory, placed_head_for, reserve_call
from sale.books.scripts import DIGESTS
from sale.operations.operations import Stores
from sale.orders import place_rows
from schemas.codec import encode
from schemas.events import OrderPlaced
from schemas.topics import ORDERS

from .burst import CONNECTIONS
from .empty_gateway import READY

ANSWERS_S = 1.5  # a round
USERS = 200
ROUNDS = 3  # the fastest counts: the first ones are cold
BATCHES = 4  # a round, of BATCH orders each
RECORDS = 10_000  # a round
FSYNCS = 100  # a round
APPENDED = bytes(256)  # about a record of the log
POLL_MS = 1_000


@dataclass(frozen=True, slots=True)
class Limit:
    """`an_order`: how often an order needs this, from the purchase to its end."""

    what: str
    an_order: int = 0


LIMITS = {
    "answers": Limit("HTTP: an empty aiohttp handler with the gateway's workers, 64 connections, answers"),
    # reserve, settle, and the projector twice (stored, ended)
    "reservations": Limit("Redis: reserve.lua by a bare client, 500 a trip", an_order=4),
    # order.placed, the payment request, the status "awaiting payment", the end
    "produced": Limit("Kafka: records of orders, produced", an_order=4),
    "fetched": Limit("Kafka: the same records, fetched", an_order=4),
    # placed, settled
    "rows": Limit("Postgres: rows by place_orders, 500 a statement", an_order=2),
    "fsyncs": Limit("Disk: appends of 256 bytes, each with fsync"),
}


def limit_of(figure: str, limits: Mapping[str, float]) -> float | None:
    """The natural limit of a figure: empty answers for the burst, the scarcest of the stores for sustained orders."""
    if figure == "burst_accepted":
        return limits.get("answers")
    if figure == "sustained":
        return min((orders for name in limits if (orders := orders_per_s(name, limits[name]))), default=None)
    return None


def orders_per_s(limit: str, per_s: float) -> float | None:
    """How many orders it would carry if nothing else were scarce."""
    needed = LIMITS[limit].an_order
    return per_s / needed if needed else None


async def measure(state_dir: Path) -> dict[str, float]:
    """Each limit of LIMITS, a second, on new servers in `state_dir`."""
    async with servers(state_dir) as stores:
        events = [event for _ in range(ROUNDS * BATCHES) for event in await reserve(Inventory(stores.redis))]
        found = {
            "answers": await _answers(get_signing_settings(), state_dir),
            "reservations": await _reservations(stores.redis),
            "produced": await _produced(stores.publisher, events),
            "fetched": await _fetched(),
            "rows": await _rows(stores, events),
            "fsyncs": await _fsyncs(state_dir / "fsync"),
        }
    return {name: round(value, 1) for name, value in found.items()}


async def _fastest(operations: int, work: Callable[[int], Awaitable[object]]) -> float:
    """Operations a second in the fastest round; `work` gets the number of the round."""
    taken_s: list[float] = []
    for number in range(ROUNDS):
        started_s = time.perf_counter()
        await work(number)
        taken_s.append(time.perf_counter() - started_s)
    return operations / min(taken_s)


async def _answers(settings: SigningSettings, folder: Path) -> float:
    tokens = folder / "tokens.json"
    tokens.write_bytes(msgspec.json.encode(list(sign_all(range(1, USERS + 1), "user", settings))))
    async with empty_gateway(settings.api_workers) as url:
        plan = Plan(base_url=url, tokens=str(tokens), mode="closed", connections=CONNECTIONS, seconds=ANSWERS_S)
        return max([(await buyers.run(plan)).accepted_per_s for _ in range(ROUNDS)])


@asynccontextmanager
async def empty_gateway(workers: int) -> AsyncIterator[str]:
    """Its URL. The workers share one listening socket, like the gateway's."""
    with socket.create_server(("127.0.0.1", 0), backlog=CONNECTIONS) as sock:
        processes = [await _start_worker(sock.fileno()) for _ in range(workers)]
        try:
            for process in processes:
                assert process.stdout is not None
                if await process.stdout.readline() != READY:
                    raise RuntimeError("an empty gateway did not come up; its output is above")
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            await asyncio.gather(*(process.communicate(b"") for process in processes))


async def _start_worker(fd: int) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.performance.empty_gateway", str(fd)),
        cwd=REPOSITORY,
        pass_fds=(fd,),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )


async def _reservations(redis: Redis) -> float:
    trips = [[_trip() for _ in range(BATCHES)] for _ in range(ROUNDS)]

    async def reserve_all(number: int) -> None:
        for trip in trips[number]:
            replies = await redis.replies(trip)
            if any(reply[0] != b"held" for reply in replies):
                raise RuntimeError(f"a reservation was refused: {replies[0]}")

    return await _fastest(BATCHES * BATCH, reserve_all)


def _trip() -> list[Command]:
    calls = [reserve_call(wish, placed_head_for(wish)) for wish in wishes()]
    return [("EVALSHA", DIGESTS["reserve"], len(keys), *keys, *arguments) for keys, arguments in calls]


async def _produced(publisher: Publisher, events: list[OrderPlaced]) -> float:
    records = [(ORDERS, event.order_id, encode(event)) for event in events]
    some = (records * (RECORDS // len(records) + 1))[:RECORDS]
    return await _fastest(RECORDS, lambda _: publisher.publish_all(some))


async def _fetched() -> float:
    consumer = make_consumer(get_settings(), ORDERS.name)
    await consumer.start()
    try:
        return await _fastest(RECORDS, lambda _: _fetch(consumer))
    finally:
        await consumer.stop()


async def _fetch(consumer: AIOKafkaConsumer) -> None:
    await consumer.seek_to_beginning()
    left = RECORDS
    while left > 0:
        left -= sum(map(len, (await consumer.getmany(timeout_ms=POLL_MS)).values()))


async def _rows(stores: Stores, events: list[OrderPlaced]) -> float:
    async def place(number: int) -> None:
        for batch in range(number * BATCHES, (number + 1) * BATCHES):
            await place_rows(stores.pool, events[batch * BATCH : (batch + 1) * BATCH], vouched=False)

    return await _fastest(BATCHES * BATCH, place)


async def _fsyncs(path: Path) -> float:
    def append() -> None:
        with path.open("ab", buffering=0) as file:
            for _ in range(FSYNCS):
                file.write(APPENDED)
                os.fsync(file.fileno())

    return await _fastest(FSYNCS, lambda _: asyncio.to_thread(append))
