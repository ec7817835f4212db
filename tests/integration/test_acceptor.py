"""Workers that share a listening socket share its connections; nobody is left waiting, whoever stops."""

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Callable

import pytest
import uvloop

from gateway.http.acceptor import ACCEPTS_A_TURN, Acceptor


class Greeter(asyncio.Protocol):
    """Says who took the connection."""

    def __init__(self, name: bytes) -> None:
        self._name = name

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(self._name)  # type: ignore[attr-defined] # a Transport, as every stream's is
        transport.close()


@pytest.fixture
async def shared() -> AsyncIterator[socket.socket]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock


def started(sock: socket.socket, name: bytes) -> Acceptor:
    acceptor = Acceptor(sock.dup(), lambda: Greeter(name))
    acceptor.start()
    return acceptor


async def greeted(sock: socket.socket) -> bytes:
    reader, writer = await asyncio.open_connection(*sock.getsockname())
    try:
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()


async def test_a_burst_of_connections_is_shared(shared: socket.socket) -> None:
    workers = [started(shared, name) for name in (b"a", b"b")]
    names = await asyncio.gather(*(greeted(shared) for _ in range(64)))
    assert min(names.count(b"a"), names.count(b"b")) >= 16
    for worker in workers:
        worker.close()


async def test_one_that_closes_leaves_what_waits_to_the_others(shared: socket.socket) -> None:
    gone, stays = started(shared, b"gone"), started(shared, b"stays")
    gone.close()
    assert await asyncio.gather(*(greeted(shared) for _ in range(20))) == [b"stays"] * 20
    stays.close()


async def test_a_flood_is_taken_in_ever_larger_steps(shared: socket.socket) -> None:
    worker = started(shared, b"w")
    assert await asyncio.gather(*(greeted(shared) for _ in range(500))) == [b"w"] * 500
    assert worker._most == ACCEPTS_A_TURN
    worker.close()


async def test_without_file_descriptors_it_waits_and_goes_on(shared: socket.socket) -> None:
    class Short:
        """A socket whose first accept finds no descriptor left."""

        def __init__(self, sock: socket.socket) -> None:
            self._sock, self._failed = sock, False

        def accept(self) -> tuple[socket.socket, object]:
            if not self._failed:
                self._failed = True
                raise OSError(errno.EMFILE, "Too many open files")
            return self._sock.accept()

        def __getattr__(self, name: str) -> Callable[..., object]:
            found: Callable[..., object] = getattr(self._sock, name)
            return found

    worker = Acceptor(Short(shared), lambda: Greeter(b"w"))  # type: ignore[arg-type] # as far as it is used
    worker.start()
    assert await greeted(shared) == b"w"
    worker.close()


def test_the_same_on_uvloop_which_the_workers_run_on() -> None:
    async def burst() -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            await test_a_burst_of_connections_is_shared(sock)

    uvloop.run(burst())
