"""A TCP proxy whose faults a test switches on: replies lost, or nobody there."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class FaultProxy:
    """Passes bytes to `host:port`. `lose_replies` requests still reach the server, but their connections break before the
    reply (`lose_share`: of all requests); `refuse` closes everything and takes no connection."""

    def __init__(self, host: str, port: int) -> None:
        self._to = (host, port)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.lose_replies = 0
        self.lose_share = 0.0
        self.dice = random.Random()
        self.lost = 0
        self.only_after = b""

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0.05)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(*self._to)
        self._writers |= {writer, server_writer}
        armed = asyncio.Event()
        try:
            await asyncio.gather(
                self._requests(reader, server_writer, armed), self._replies(server_reader, writer, armed)
            )
        except OSError:
            pass  # either side has gone, so has the other
        finally:
            self._writers -= {writer, server_writer}
            writer.close()
            server_writer.close()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, armed: asyncio.Event) -> None:
        while data := await reader.read(65_536):
            if self._loses(data):
                self.lost += 1
                armed.set()
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError

    def _loses(self, request: bytes) -> bool:
        if self.only_after not in request:
            return False
        if self.lose_replies:
            self.lose_replies -= 1
            return True
        return self.dice.random() < self.lose_share

    async def _replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, armed: asyncio.Event) -> None:
        while data := await reader.read(65_536):
            if armed.is_set():
                break  # the server has run it
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError


@asynccontextmanager
async def fault_proxy(host: str, port: int) -> AsyncIterator[FaultProxy]:
    proxy = FaultProxy(host, port)
    await proxy.listen()
    try:
        yield proxy
    finally:
        with suppress(OSError):
            await proxy.refuse()
