"""nginx before two real gateways and a pool of streams: one is killed, restarted, stopped, and buyers hardly notice."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import aiohttp
import orjson
import psutil
import pytest

from infra.lifecycle import Stop
from infra.settings import SigningSettings
from infra.supervision.place import REPOSITORY
from infra.supervision.ports import free_ports
from sale.operations.operations import connected
from schemas.ids import ProductId

from ..conftest import child_env
from .gateway_fixtures import SECRET, Answer, GatewayClient, settings
from .nginx_fixtures import Nginx, nginx_binary, nginx_on

__all__ = ["nginx_binary", "settings"]

BUYERS = 12
STOCK = 100_000
READY_S = 60.0  # eight Python processes start at once, and the machine may have other things to do
STOPPED_S = 25.0
TRIED_AGAIN_S = 10.0  # nginx passes a gateway that failed by for fail_timeout, in whole seconds: up to 2 s


@dataclass(slots=True)
class Cluster:
    """`thrones gateway` or `thrones sse` on a port of its own, with a state directory of its own."""

    role: str
    port: int
    env: dict[str, str]
    process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "thrones", self.role), env=self.env, cwd=REPOSITORY
        )

    async def ready(self, session: aiohttp.ClientSession) -> None:
        async with asyncio.timeout(READY_S):
            while not await self._answers(session):  # noqa: ASYNC110 - another process cannot set our event
                await asyncio.sleep(0.1)

    async def _answers(self, session: aiohttp.ClientSession) -> bool:
        with contextlib.suppress(aiohttp.ClientError):
            async with session.get(f"http://127.0.0.1:{self.port}/health/ready") as response:
                return response.status == 200
        return False

    async def has_work(self, session: aiohttp.ClientSession) -> None:
        """Returns when a purchase has come through to this gateway since it started: nginx counts on it again."""
        async with asyncio.timeout(TRIED_AGAIN_S):
            while not await self._accepted(session):  # noqa: ASYNC110 - another process cannot set our event
                await asyncio.sleep(0.05)

    async def _accepted(self, session: aiohttp.ClientSession) -> float:
        async with session.get(f"http://127.0.0.1:{self.port}/metrics") as response:
            return sum(
                float(line.split()[-1])
                for line in (await response.text()).splitlines()
                if line.startswith("thrones_gateway_accepted_total")
            )

    def kill(self) -> None:
        """The parent and its workers, all at once."""
        assert self.process is not None
        parent = psutil.Process(self.process.pid)
        processes = [parent, *parent.children(recursive=True)]
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, timeout=5)

    async def stop(self) -> None:
        """As a rolling restart does it: SIGTERM, and exit 0 when drained."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(self.process.wait(), STOPPED_S) == 0


@dataclass(slots=True)
class Door:
    """nginx, the gateways and the streams behind it, and a client at it."""

    nginx: Nginx
    clusters: list[Cluster]
    pool: Cluster
    client: GatewayClient


@asynccontextmanager
async def a_door(binary: Path, folder: Path, settings: SigningSettings) -> AsyncIterator[Door]:
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        *clusters, pool = (_cluster(role, folder, settings) for role in ("gateway", "gateway", "sse"))
        for cluster in (*clusters, pool):
            await cluster.start()
            stack.callback(_end, cluster)
        for cluster in (*clusters, pool):
            await cluster.ready(session)
        (folder / "nginx").mkdir()
        nginx = await stack.enter_async_context(
            nginx_on(binary, folder / "nginx", [cluster.port for cluster in clusters], streams=[pool.port])
        )
        to = await stack.enter_async_context(connected(settings))
        yield Door(nginx, clusters, pool, GatewayClient(nginx.url, session, settings, to, Stop()))


def _cluster(role: str, folder: Path, settings: SigningSettings) -> Cluster:
    [port] = free_ports(1)
    own = settings.model_copy(update={"thrones_state_dir": folder / f"{role}-{port}"})
    env = child_env(
        own,
        PORT=str(port),
        API_WORKERS="2" if role == "gateway" else "1",
        JWT_SECRET=SECRET,
        BUYS_PER_SECOND_PER_USER="100000",
        TRUSTED_PROXIES="127.0.0.1",
    )
    return Cluster(role, port, env)


def _end(cluster: Cluster) -> None:
    if cluster.process is not None and cluster.process.returncode is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            cluster.kill()


@dataclass(slots=True)
class Storm:
    """Buyers who never rest: what they were answered, by key."""

    client: GatewayClient
    product: ProductId
    accepted: dict[str, str] = field(default_factory=dict)
    others: dict[str, Answer] = field(default_factory=dict)

    @property
    def refused(self) -> list[tuple[int, bytes]]:
        return [(answer.status, answer.body) for answer in self.others.values()]

    @asynccontextmanager
    async def raging(self) -> AsyncIterator[None]:
        stop = asyncio.Event()
        buyers = [asyncio.create_task(self._buy_on(stop)) for _ in range(BUYERS)]
        try:
            yield
        finally:
            stop.set()
            await asyncio.gather(*buyers)

    async def more(self, orders: int) -> None:
        """Returns when so many more were accepted."""
        wanted = len(self.accepted) + orders
        async with asyncio.timeout(30):
            while len(self.accepted) < wanted:  # noqa: ASYNC110 - the buyers are many, and none of them counts
                await asyncio.sleep(0.05)

    async def _buy_on(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await self.buy(uuid4().hex)

    async def buy(self, key: str) -> None:
        answer = await self.client.buy({"productId": self.product}, key)
        if answer.status == 202:
            self.accepted[key] = answer.json["orderId"]
        else:
            self.others[key] = answer


@pytest.mark.timeout(300)
async def test_a_killed_gateway_costs_no_more_than_what_was_in_flight(
    nginx_binary: Path, tmp_path: Path, settings: SigningSettings
) -> None:
    """Each of those is told that it is unknown, repeats its key and gets its one order. The other gateway goes on."""
    async with a_door(nginx_binary, tmp_path, settings) as door:
        storm = Storm(door.client, await door.client.product(STOCK))
        killed, survivor = door.clusters
        async with storm.raging():
            await storm.more(200)
            killed.kill()
            await storm.more(300)
        assert len(storm.others) <= BUYERS
        unknown, storm.others = storm.others, {}
        for key, answer in unknown.items():
            assert answer.is_problem(504, "outcome_unknown")
            await storm.buy(key)
        assert storm.refused == []
        await _one_unit_an_order(door, storm)

        survivor.kill()
        assert (await door.client.buy({"productId": storm.product})).is_problem(503, "unavailable")

        await killed.start()
        await killed.ready(door.client.session)
        async with storm.raging():
            await storm.more(100)
        # nginx tries a gateway that had failed again after 1 s; until then purchases are refused, and nothing is taken
        for answer in storm.others.values():
            assert answer.is_problem(503, "unavailable")
        await _one_unit_an_order(door, storm)


@pytest.mark.timeout(300)
async def test_gateways_restarted_one_after_the_other_cost_nothing(
    nginx_binary: Path, tmp_path: Path, settings: SigningSettings
) -> None:
    """A rolling restart under load: every purchase is accepted."""
    async with a_door(nginx_binary, tmp_path, settings) as door:
        storm = Storm(door.client, await door.client.product(STOCK))
        async with storm.raging():
            for cluster in door.clusters:
                await storm.more(50)
                await cluster.stop()
                await storm.more(50)
                await cluster.start()
                await cluster.ready(door.client.session)
                await cluster.has_work(door.client.session)
            await storm.more(100)
        assert storm.refused == []
        await _one_unit_an_order(door, storm)
        await _everything_else(door, storm.product)


async def _one_unit_an_order(door: Door, storm: Storm) -> None:
    assert len(set(storm.accepted.values())) == len(storm.accepted)
    assert await door.client.available(storm.product) == STOCK - len(storm.accepted)


async def _everything_else(door: Door, product: ProductId) -> None:
    """On the same stack, for it takes a while to start."""
    await _stock_is_streamed(door, product)
    async with door.client.session.get(f"http://127.0.0.1:{door.clusters[0].port}/metrics") as inside:
        assert "thrones_gateway_accepted" in await inside.text()
    assert (await door.client.ask("GET", "/metrics")).status == 403


async def _stock_is_streamed(door: Door, product: ProductId) -> None:
    """From the pool: the snapshot at once, and a purchase when it has heard of it."""
    async with asyncio.timeout(8), door.client.session.get(f"{door.nginx.url}/sse/stock/{product}") as stream:
        before = await _stock(stream)
        async with door.client.session.get(f"http://127.0.0.1:{door.pool.port}/metrics") as inside:
            assert "thrones_gateway_streams 1.0" in await inside.text()
        assert (await door.client.buy({"productId": product})).status == 202
        assert await _stock(stream) == before - 1


async def _stock(stream: aiohttp.ClientResponse) -> int:
    while not (line := await stream.content.readline()).startswith(b"data: "):
        assert line, "the stream has ended"
    return int(orjson.loads(line[6:])["stock"])
