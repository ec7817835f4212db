"""A real gateway worker on real servers, in the test's own event loop; products, users and tokens to try it with."""

import asyncio
import json
import random
import re
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import aiohttp
import asyncpg
import jwt
import pytest
from pydantic import SecretStr

from gateway.worker import run_worker
from infra.lifecycle import Stop
from infra.settings import SigningSettings
from sale.accounts.tokens import AUDIENCE, ISSUER, sign
from sale.books import keys
from sale.books.run import present_run
from sale.operations.operations import NewProduct, Stores, connected, create_product
from sale.operations.provision import provision
from sale.tables.queries import SQL
from schemas.ids import ProductId

REDIS_DB = 8  # of these tests: others empty theirs
SECRET = "a secret that only these tests know, long enough"
UNKNOWN_ORDER = "01900000-0000-7000-8000-000000000000"


@pytest.fixture(scope="session")
def settings(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[SigningSettings]:
    """Settings with a migrated database of its own, which is dropped in the end."""
    name = f"gateway_{uuid4().hex}"
    base = SigningSettings(
        thrones_profile="development",
        thrones_state_dir=tmp_path_factory.mktemp("state"),
        kafka_bootstrap_servers=servers["KAFKA_BOOTSTRAP_SERVERS"],
        redis_url=urlunsplit(urlsplit(servers["REDIS_URL"])._replace(path=f"/{REDIS_DB}")),
        db_host=servers["DB_HOST"],
        db_port=int(servers["DB_PORT"]),
        postgres_user=servers["POSTGRES_USER"],
        postgres_password=SecretStr(servers["POSTGRES_PASSWORD"]),
        postgres_db=servers["POSTGRES_DB"],
        jwt_secret=SecretStr(SECRET),
        bcrypt_cost=10,
        buys_per_second_per_user=1_000,
        registrations_per_minute_per_address=0,
    )
    asyncio.run(_execute(base, f"CREATE DATABASE {name}"))
    own = base.model_copy(update={"postgres_db": name})
    asyncio.run(provision(own))
    yield own
    asyncio.run(_execute(base, f"DROP DATABASE {name} WITH (FORCE)"))


async def _execute(settings: SigningSettings, statement: str) -> None:
    connection = await asyncpg.connect(settings.postgres_dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


class GatewayClient:
    """Requests to one worker, and what is behind it."""

    def __init__(
        self, url: str, session: aiohttp.ClientSession, settings: SigningSettings, to: Stores, stop: Stop
    ) -> None:
        self.url = url
        self.stop = stop
        self.session = session
        self.settings = settings
        self.to = to
        self.user_id = random.randrange(10**6, 10**9)
        self.token = sign(self.user_id, "user", settings)

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def another_user(self) -> "GatewayClient":
        return GatewayClient(self.url, self.session, self.settings, self.to, self.stop)

    def drain(self) -> None:
        """What SIGTERM does."""
        self.stop.set()

    async def ask(self, method: str, path: str, **options: Any) -> "Answer":
        async with self.session.request(method, self.url + path, **options) as response:
            return Answer(response.status, await response.read(), response.headers.copy())

    async def buy(self, body: Any, key: str | None = None, **headers: str) -> "Answer":
        """`body` is sent as it is when bytes, as JSON otherwise."""
        options: dict[str, Any] = {"data": body} if isinstance(body, bytes) else {"json": body}
        own = {"Content-Type": "application/json", **self.bearer}
        if key is not None:
            own["Idempotency-Key"] = key
        return await self.ask("POST", "/api/order/buy-flash", headers=own | headers, **options)

    async def operator(self) -> "GatewayClient":
        """A fresh operator."""
        operator = self.another_user()
        row = ("Ned", f"{uuid4().hex}@winterfell.example", "!", "operator")
        operator.user_id = await self.to.pool.fetchval(SQL.create_user, *row)
        operator.token = sign(operator.user_id, "operator", self.settings)
        return operator

    async def status(self, order_id: str, query: str = "") -> "Answer":
        return await self.ask("GET", f"/api/order/{order_id}/status{query}", headers=self.bearer)

    async def product(self, stock: int, **fields: Any) -> ProductId:
        """A fresh product, on sale."""
        product = ProductId(random.randrange(10**4, 2**31))
        await create_product(self.to, NewProduct(product, "Valyrian steel", 1_999, stock, **fields))
        return product

    async def available(self, product: ProductId) -> int:
        return int(await self.to.redis.hget(keys.stock(product), "available") or -1)

    async def reserved(self, product: ProductId) -> tuple[int, int]:
        """Units on sale, and orders that hold some."""
        return await self.available(product), int(await self.to.redis.hlen(keys.held(product)))

    async def verify_books(self) -> None:
        """What the relay does once every product's books are of this Redis run."""
        await self.to.redis.set(keys.BOOKS_RUN, await present_run(self.to.redis))


class Answer:
    """One response, read."""

    def __init__(self, status: int, body: bytes, headers: Any) -> None:
        self.status = status
        self.body = body
        self.headers = headers

    @property
    def json(self) -> Any:
        import orjson

        return orjson.loads(self.body)

    @property
    def words(self) -> bytes:
        """The body without the request's own id: what two answers that tell the same have in common."""
        return re.sub(rb',"requestId":"[A-Za-z0-9._-]+"', b"", self.body)

    def is_problem(self, status: int, code: str) -> bool:
        """A complete problem document, with Retry-After where it must be."""
        assert self.headers["Content-Type"] == "application/problem+json", self.body
        body = self.json
        assert {"type", "title", "status", "detail", "code", "retryable", "error"} <= body.keys()
        assert body["error"] == body["title"]
        assert body["requestId"] == self.headers["X-Request-Id"]
        assert body["status"] == self.status
        assert (self.status in (429, 503)) == ("Retry-After" in self.headers)
        assert (self.status, body["code"]) == (status, code), (self.status, self.body)
        return True


@asynccontextmanager
async def gateway_on(settings: SigningSettings, **changes: Any) -> AsyncIterator[GatewayClient]:
    """A worker with `changes` to its settings; it is drained in the end. What is behind it is reached unchanged."""
    sock = socket.create_server(("127.0.0.1", 0), backlog=512)
    sock.setblocking(False)
    async with worker_on(settings, sock, Stop(), **changes) as (client, _):
        yield client


@asynccontextmanager
async def worker_on(
    settings: SigningSettings, sock: socket.socket, stop: Stop, **changes: Any
) -> AsyncIterator[tuple[GatewayClient, "asyncio.Task[None]"]]:
    """As `gateway_on`, for tests that end the worker themselves."""
    worker = asyncio.create_task(run_worker(settings.model_copy(update=changes), sock, stop))
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    try:
        async with connected(settings) as to, aiohttp.ClientSession() as session:
            await _until_serving(session, url, worker)
            yield GatewayClient(url, session, settings, to, stop), worker
    finally:
        if not stop.stopping:
            stop.set()
        await asyncio.wait_for(worker, 25)


async def _until_serving(session: aiohttp.ClientSession, url: str, worker: "asyncio.Task[None]") -> None:
    until = time.monotonic() + 10
    while time.monotonic() < until and not worker.done():
        async with session.get(url + "/health/live") as response:
            if response.status == 200:
                return
    raise AssertionError("the worker does not serve")


@pytest.fixture
async def gateway(settings: SigningSettings) -> AsyncIterator[GatewayClient]:
    async with gateway_on(settings) as client:
        yield client


def forged(claims: dict[str, Any] | None = None, *, key: str = SECRET, headers: dict[str, Any] | None = None) -> str:
    """A token that is right but for what is given; a claim of None is left out."""
    now = int(time.time())
    right = {"sub": "7", "iss": ISSUER, "aud": AUDIENCE, "iat": now, "exp": now + 60, "role": "user"}
    changed = {name: value for name, value in (right | (claims or {})).items() if value is not None}
    return jwt.PyJWS().encode(json.dumps(changed).encode(), key, "HS256", headers=headers)
