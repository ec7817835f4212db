"""What comes from outside while a sale runs: poison on the topics, wrong passwords, readers that do not read."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import aiohttp
from aiokafka import AIOKafkaProducer

from infra.kafka.offsets import Offsets
from schemas.codec import VERSION_HEADER
from schemas.topics import DEAD_LETTERS, ORDERS, PAYMENTS

from .trial import Trial

LETTERS_MAX_S = 20.0
CUT_MAX_S = 25.0  # until a small window is full, and 8 s more
POISON: dict[str, bytes | None] = {
    "random bytes": bytes(range(256)),
    "nothing at all": None,
    "an empty value": b"",
    "the wrong schema": b'{"type":"order.placed","order_id":7}',
    "an unknown type": b'{"type":"order.forgotten","order_id":"x"}',
    "invalid UTF-8": b'{"type":"\xff\xfe"}',
    "almost a MiB": b"x" * 1_000_000,
    "deep JSON": b"[" * 100_000,
}


async def poison(trial: Trial) -> None:
    """Records that can never be processed, on both topics that stages read; each must become one dead letter."""
    settings = trial.ground.settings()
    offsets = Offsets(settings)
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka_bootstrap_servers, max_request_size=1_048_576)
    await producer.start()
    before, injected = sum((await offsets.ends(DEAD_LETTERS)).values()), 0
    try:
        while trial.left_s > 0:
            name = trial.dice.choice(list(POISON))
            topic = trial.dice.choice([ORDERS, PAYMENTS]).name
            await producer.send_and_wait(topic, POISON[name], str(injected).encode(), headers=[VERSION_HEADER])
            injected += 1
            await asyncio.sleep(trial.dice.uniform(0.05, 0.3))
        fault = trial.begin(f"{injected} poison records put on the topics, over {trial.seconds:.0f} s")
        fault.from_s = trial.started_s
        until = time.monotonic() + LETTERS_MAX_S
        while (buried := sum((await offsets.ends(DEAD_LETTERS)).values()) - before) < injected:
            assert time.monotonic() < until, f"{buried} dead letters of {injected}"
            await asyncio.sleep(0.2)
        trial.measured["dead letters beside the poison"] = buried - injected
    finally:
        await producer.stop()
        await offsets.close()


async def wrong_passwords(trial: Trial) -> None:
    """First nothing; then, for the second half, 200 logins a second with wrong passwords."""
    await asyncio.sleep(trial.seconds / 2)
    answers: dict[int, int] = {}
    fault = trial.begin("200 wrong passwords a second")
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session, asyncio.TaskGroup() as group:
        number = 0
        while trial.left_s > 0:
            group.create_task(_wrong_password(session, trial.ground.url, number, answers))
            number += 1
            await asyncio.sleep(max(0.0, fault.from_s + number / 200 - time.time()))
    trial.heal(fault)
    print(f"  logins: {answers}")
    trial.measured["logins let in"] = answers.get(200, 0)
    trial.measured["logins refused with 429 or 503"] = answers.get(429, 0) + answers.get(503, 0)
    for status in answers.keys() - {401, 429, 503}:
        trial.violations.append(f"a wrong password got {status or 'no answer'}")


async def _wrong_password(session: aiohttp.ClientSession, url: str, number: int, answers: dict[int, int]) -> None:
    body = {"email": f"nobody-{number % 50}@example.com", "password": "wrong password"}
    try:
        async with session.post(f"{url}/api/auth/login", json=body) as answer:
            status = answer.status
    except (aiohttp.ClientError, TimeoutError):
        status = 0
    answers[status] = answers.get(status, 0) + 1


@dataclass
class Listener:
    """One stock stream: what it was told, by event id."""

    last: tuple[int, int] = (-1, -1)
    stock: int = -1
    events: int = 0
    out_of_order: int = 0
    ended: bool = False
    delays_s: list[float] = field(default_factory=list)

    async def listen(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            if line.startswith(b"id: "):
                epoch, version = line[4:].split(b".")
                now = (int(epoch), int(version))
                self.out_of_order += now <= self.last
                self.last, self.events = now, self.events + 1
            elif line.startswith(b"data: "):
                self.stock = int(line.partition(b'"stock":')[2].partition(b"}")[0])
        self.ended = True


async def stock_streams(trial: Trial, listeners: int = 300) -> None:
    """Watchers of the product, of whom 1 in 20 stops reading: those are cut, the others see every stream in order."""
    stalled_count = max(1, listeners // 20)
    async with contextlib.AsyncExitStack() as stack:
        stalled = [await stack.enter_async_context(_silent(trial)) for _ in range(stalled_count)]
        watchers = [Listener() for _ in range(listeners - stalled_count)]
        group = await stack.enter_async_context(asyncio.TaskGroup())
        writers = [await _watch(trial, watcher, group) for watcher in watchers]
        fault = trial.begin(f"{listeners} stock streams, {stalled_count} of them never read")
        await asyncio.sleep(max(CUT_MAX_S, trial.left_s))
        trial.measured["stalled and not cut"] = len(stalled) - sum([await _was_cut(sock) for sock in stalled])
        trial.measured["streams that ended"] = sum(watcher.ended for watcher in watchers)
        trial.heal(fault)
        trial.stop.set()
        await _same_stock(trial, watchers)
        for writer in writers:
            writer.close()
    trial.measured["events out of order"] = sum(watcher.out_of_order for watcher in watchers)
    trial.measured["events a watcher"] = sum(watcher.events for watcher in watchers) / len(watchers)


async def _watch(trial: Trial, watcher: Listener, group: asyncio.TaskGroup) -> asyncio.StreamWriter:
    where = urlsplit(trial.ground.url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    writer.write(_request(trial))
    group.create_task(watcher.listen(reader))
    return writer


@contextlib.asynccontextmanager
async def _silent(trial: Trial) -> AsyncIterator[socket.socket]:
    """A client that asks and never reads; its window is small, so that it is full within seconds."""
    where = urlsplit(trial.ground.url)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
    sock.connect((where.hostname, where.port))
    sock.sendall(_request(trial))
    sock.setblocking(False)
    try:
        yield sock
    finally:
        sock.close()


async def _was_cut(sock: socket.socket) -> bool:
    """Read what is left: the end or a reset comes after it where the server has given this client up."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(0.5):
            while await loop.sock_recv(sock, 65_536):
                pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def _request(trial: Trial) -> bytes:
    return f"GET /sse/stock/{trial.product} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


async def _same_stock(trial: Trial, watchers: list[Listener]) -> None:
    """When nothing is bought or given back any more, everybody has been told the same, which is the stock there is."""
    until = time.monotonic() + 60.0
    while time.monotonic() < until:
        stock = (await asyncio.to_thread(trial.ground.get, f"/api/products/{trial.product}"))["stock"]
        wrong = [watcher.stock for watcher in watchers if not watcher.ended and watcher.stock != stock]
        if not wrong:
            return
        await asyncio.sleep(0.5)
    trial.violations.append(f"I10: {len(wrong)} of {len(watchers)} watchers see {sorted(set(wrong))[:5]}, not {stock}")
