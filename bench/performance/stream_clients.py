"""A process with many watchers of one stock. It reads a plan, prints "ready", waits for a line, and prints the results.

A few watchers are measured: they read at once and record the time of each value. The others only read once a second, so
that ten thousand clients cost the machine little more than the work of the server.
"""

import asyncio
import re
import resource
import socket
import sys
import time

import msgspec
import uvloop

READ_INTERVAL_S = 1.0
READ_BYTES = 256 * 1024
CONNECT_TIMEOUT_S = 30.0
AT_ONCE = 50
EVENT_ID = re.compile(rb"^id: \d+\.(\d+)$", re.MULTILINE)
READY = b"ready\n"


class Watch(msgspec.Struct, frozen=True):
    port: int
    product: int
    clients: int
    measured: bool


class Seen(msgspec.Struct):
    """`values`: for each measured client its received versions and their times (monotonic seconds of the machine)."""

    values: list[list[tuple[int, float]]] = []
    events: int = 0
    lost: int = 0  # connections that the server ended
    cpu_s: float = 0.0


def _request(watch: Watch) -> bytes:
    return f"GET /sse/stock/{watch.product} HTTP/1.1\r\nHost: 127.0.0.1:{watch.port}\r\n\r\n".encode()


class Watcher(asyncio.Protocol):
    """Records each value on arrival."""

    def __init__(self, request: bytes, seen: Seen) -> None:
        self._request, self._seen = request, seen
        self.values: list[tuple[int, float]] = []
        self.first = asyncio.get_running_loop().create_future()
        seen.values.append(self.values)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(self._request)  # type: ignore[attr-defined]  # uvloop's is one in all but its bases

    def data_received(self, data: bytes) -> None:
        now_s = time.monotonic()
        found = EVENT_ID.findall(data)
        self.values += [(int(version), now_s) for version in found]
        self._seen.events += len(found)
        if found and not self.first.done():
            self.first.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._seen.lost += 1


async def _measure(watch: Watch) -> Seen:
    loop, seen, request, slots = asyncio.get_running_loop(), Seen(), _request(watch), asyncio.Semaphore(AT_ONCE)

    async def connect() -> None:
        async with slots, asyncio.timeout(CONNECT_TIMEOUT_S):
            _, watcher = await loop.create_connection(lambda: Watcher(request, seen), "127.0.0.1", watch.port)
            await watcher.first

    await asyncio.gather(*(connect() for _ in range(watch.clients)))
    lost = seen.lost
    await _report_ready_and_wait()
    seen.lost -= lost
    return seen


async def _report_ready_and_wait() -> None:
    """Report that all are connected; return when told to end."""
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    await asyncio.to_thread(sys.stdin.buffer.readline)


async def _crowd(watch: Watch) -> Seen:
    seen, request = Seen(), _request(watch)
    sockets = [await asyncio.to_thread(_open, watch.port, request) for _ in range(watch.clients)]
    waiting = asyncio.create_task(_report_ready_and_wait())
    while not waiting.done():
        sockets = [sock for sock in sockets if _read(sock, seen)]
        await asyncio.wait((waiting,), timeout=READ_INTERVAL_S)
    return seen


def _open(port: int, request: bytes) -> socket.socket:
    """Raises OSError, also if the answer is not a stream."""
    sock = socket.create_connection(("127.0.0.1", port), CONNECT_TIMEOUT_S)
    sock.sendall(request)
    if b" 200 " not in sock.recv(READ_BYTES)[:20]:
        raise ConnectionError("the stream was refused")
    sock.setblocking(False)
    return sock


def _read(sock: socket.socket, seen: Seen) -> bool:
    """Count the events since the last read; returns False if the server has closed."""
    try:
        data = sock.recv(READ_BYTES)
    except BlockingIOError:
        return True
    except OSError:
        data = b""
    seen.events += data.count(b"data: ")
    seen.lost += not data
    return bool(data)


def main() -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    watch = msgspec.json.decode(sys.stdin.buffer.readline(), type=Watch)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        seen = runner.run(_measure(watch) if watch.measured else _crowd(watch))
    seen.cpu_s = round(time.process_time(), 2)
    sys.stdout.buffer.write(msgspec.json.encode(seen))


if __name__ == "__main__":
    main()
