"""Debian's nginx on our template, in front of whatever a test puts behind it; and gateways that misbehave as told."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import pytest

from infra.supervision.ports import free_ports
from tests.debian import program

TEMPLATE = Path(__file__).parents[2] / "infra" / "deploy" / "nginx" / "nginx.conf.template"
START_S = 10.0


@pytest.fixture(scope="session")
def nginx_binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed nginx, else Debian's."""
    return program("nginx", "nginx", tmp_path_factory.mktemp("nginx-package"))


def rendered(**values: str) -> str:
    """The template with its names filled in, as nginx's image does it."""
    text = TEMPLATE.read_text()
    for name, value in values.items():
        text = text.replace(f"${{{name}}}", value)
    assert "${" not in text, "a name of the template was not filled in"
    return text


@dataclass(frozen=True, slots=True)
class Nginx:
    """A running nginx; `output` is what it has logged."""

    port: int
    folder: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def output(self) -> str:
        return (self.folder / "output.log").read_text()


@asynccontextmanager
async def nginx_on(
    binary: Path,
    folder: Path,
    gateways: Sequence[int],
    streams: Sequence[int] | None = None,
    streams_per_address: int = 1_000,
) -> AsyncIterator[Nginx]:
    """nginx in front of loopback ports; `streams` are the gateways' own unless given."""
    [port] = free_ports(1)
    config = folder / "nginx.conf"
    config.write_text(
        rendered(
            NGINX_LISTEN=f"127.0.0.1:{port}",
            NGINX_RUN_DIR=str(folder),
            NGINX_RESOLVER="",
            NGINX_GATEWAYS=_servers(gateways),
            NGINX_STREAMS=_servers(gateways if streams is None else streams),
            NGINX_CONNECTIONS_PER_ADDRESS="4000",
            NGINX_STREAMS_PER_ADDRESS=str(streams_per_address),
        )
    )
    own_user = "daemon off; user root;" if os.geteuid() == 0 else "daemon off;"  # else workers cannot enter `folder`
    with (folder / "output.log").open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *(str(binary), "-p", str(folder), "-c", str(config), "-e", "stderr", "-g", own_user),
            stdout=output,
            stderr=output,
        )
    try:
        nginx = Nginx(port, folder)
        await _accepting(nginx, process)
        yield nginx
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


def _servers(ports: Sequence[int]) -> str:
    return " ".join(f"server 127.0.0.1:{port} max_fails=3 fail_timeout=1s;" for port in ports)


async def _accepting(nginx: Nginx, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(START_S):
        while True:
            assert process.returncode is None, nginx.output
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", nginx.port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.02)
                continue
            writer.close()
            return


@dataclass(frozen=True, slots=True)
class Reply:
    """A response as it came over the wire; `closed`: the connection ended after it."""

    status: int
    headers: dict[str, str]
    body: bytes

    def is_problem(self, status: int, code: str) -> bool:
        assert self.headers["content-type"] == "application/problem+json", self
        body = orjson.loads(self.body)
        assert {"type", "title", "status", "detail", "code", "retryable", "error"} <= body.keys()
        assert (body["status"], body["error"], body["type"]) == (
            self.status,
            body["title"],
            f"/problems/{body['code']}",
        )
        assert (self.status in (429, 503)) == ("retry-after" in self.headers), self
        assert (self.status, body["code"]) == (status, code), self
        assert body["requestId"] == self.headers["x-request-id"], self
        return True


class Raw:
    """One client connection, to which any bytes can be sent."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    @asynccontextmanager
    async def to(cls, port: int) -> AsyncIterator["Raw"]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield cls(reader, writer)
        finally:
            writer.close()

    async def ask(self, method: str, path: str, headers: str = "", body: bytes = b"") -> Reply:
        length = f"Content-Length: {len(body)}\r\n" if body or method == "POST" else ""
        self.writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}{length}\r\n".encode() + body)
        return await self.reply(method)

    async def reply(self, method: str = "GET") -> Reply:
        status, headers = _parsed(await self.reader.readuntil(b"\r\n\r\n"))
        if method == "HEAD" or "content-length" not in headers:
            return Reply(status, headers, b"")
        return Reply(status, headers, await self.reader.readexactly(int(headers["content-length"])))

    async def closed(self) -> None:
        """Returns when the other side has ended the connection, whatever it still sends."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65_536):
                pass


async def ask(port: int, method: str, path: str, headers: str = "", body: bytes = b"") -> Reply:
    """One request on a connection of its own."""
    async with Raw.to(port) as raw:
        return await raw.ask(method, path, headers, body)


def _parsed(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.split(":", 1) for line in lines if line)
    return int(first.split(" ")[1]), {name.lower(): value.strip() for name, value in pairs}


Behaviour = Callable[["FakeGateway", asyncio.StreamWriter], Awaitable[bool]]
"""What is done with one request; False ends the connection."""


@dataclass(slots=True)
class FakeGateway:
    """A gateway on a loopback port that reads requests and then does as told. `heads` are the requests it got."""

    port: int
    behave: Behaviour
    heads: list[str] = field(default_factory=list)
    ended: int = 0
    _open: set["asyncio.Task[None]"] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                self.heads.append(head)
                length = head.lower().partition("content-length:")[2].partition("\r\n")[0].strip()
                await reader.readexactly(int(length or 0))
                if not await self.behave(self, writer):
                    break
        self.ended += 1
        self._open.discard(task)
        writer.close()

    def end(self) -> None:
        for task in self._open:
            task.cancel()


@asynccontextmanager
async def fake_gateways(*behaviours: Behaviour) -> AsyncIterator[list[FakeGateway]]:
    """One fake for each behaviour."""
    fakes = [FakeGateway(port, behave) for port, behave in zip(free_ports(len(behaviours)), behaviours, strict=True)]
    servers = [await asyncio.start_server(fake.serve, "127.0.0.1", fake.port) for fake in fakes]
    try:
        yield fakes
    finally:
        for fake, server in zip(fakes, servers, strict=True):
            server.close()
            fake.end()


def send(status: int = 200, body: bytes = b"{}", kind: str = "application/json", headers: str = "") -> Behaviour:
    """Answer everything with this."""

    async def behave(fake: FakeGateway, writer: asyncio.StreamWriter) -> bool:
        own = f"Server: thrones\r\nContent-Type: {kind}\r\nServed-By: {fake.port}\r\n{headers}"
        writer.write(f"HTTP/1.1 {status} X\r\n{own}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        return True

    return behave


async def drop(_fake: FakeGateway, _writer: asyncio.StreamWriter) -> bool:
    """Read the request and die of it."""
    return False


async def hang(_fake: FakeGateway, _writer: asyncio.StreamWriter) -> bool:
    """Read the request and never answer."""
    await asyncio.Event().wait()
    return False


def after_a_while(delay_s: float) -> Behaviour:
    well = send()

    async def behave(fake: FakeGateway, writer: asyncio.StreamWriter) -> bool:
        await asyncio.sleep(delay_s)
        return await well(fake, writer)

    return behave


def after(answered: int, then: Behaviour) -> Behaviour:
    """Answer well as often as this, then do otherwise."""
    well = send()

    async def behave(fake: FakeGateway, writer: asyncio.StreamWriter) -> bool:
        return await (well if len(fake.heads) <= answered else then)(fake, writer)

    return behave
