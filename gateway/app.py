"""The gateway's routes, grouped by room, and the objects that serve them."""

from dataclasses import dataclass

import asyncpg
from aiohttp import web

from gateway.accounts.identity import Identity
from gateway.accounts.login_attempts import LoginAttempts
from gateway.accounts.passwords import Passwords
from gateway.accounts.registrations import Registrations
from gateway.accounts.routes import Accounts
from gateway.buying.catalogue import Catalogue
from gateway.buying.expected_wait import ExpectedWait
from gateway.buying.memory_budget import MemoryBudget
from gateway.buying.purchases import Purchases
from gateway.buying.traced_purchases import TracedPurchases
from gateway.http.addresses import Addresses
from gateway.http.cors import Cors
from gateway.http.middleware import Handler, answer_expect, make_application
from gateway.http.slow_bodies import SlowBodies
from gateway.pages import api_docs, site
from gateway.watching.order_list import OrderList
from gateway.watching.order_status import OrderReader, OrderStatus
from gateway.watching.order_stream import OrderStream
from gateway.watching.order_updates import OrderUpdates
from gateway.watching.products import Products
from gateway.watching.stock_stream import StockHub, StockStream
from gateway.watching.tickets import Tickets
from infra import tracing
from infra.kafka.publisher import BUSY_PER_S, LINGER_S, Publisher
from infra.pace import Pace
from infra.redis.client import Redis
from infra.redis.pipeliner import Pipeliner
from infra.settings import SigningSettings
from sale.books.books import Books
from sale.books.inventory import Inventory
from sale.books.read_model import ReadModel

from .health import Health
from .ops import Ops

OF_STREAMS = ("/sse/", "/health", "/metrics")  # the only routes of a `thrones sse` worker
Route = tuple[str, str, Handler]


@dataclass(frozen=True, slots=True)
class Gateway:
    """The application, and those of its parts that a worker starts, drains and closes."""

    app: web.Application
    health: Health
    hub: StockHub
    updates: OrderUpdates
    passwords: Passwords
    memory: MemoryBudget
    expected_wait: ExpectedWait


@dataclass(frozen=True, slots=True)
class _Shared:
    """Objects that several rooms of the gateway use."""

    settings: SigningSettings
    redis: Redis
    reads_redis: Redis
    reads: Pipeliner
    books: Books
    pool: asyncpg.Pool
    publisher: Publisher
    identity: Identity
    addresses: Addresses
    bodies: SlowBodies
    catalogue: Catalogue


def make_gateway(
    settings: SigningSettings,
    redis: Redis,
    reads_redis: Redis,
    pool: asyncpg.Pool,
    publisher: Publisher,
    *,
    streams_only: bool = False,
) -> Gateway:
    """`reads_redis` has its own connections, so that reads never delay a reservation.

    `streams_only` (`thrones sse`): only the streams, health and metrics, without the API.
    """
    shared = _share(settings, redis, reads_redis, pool, publisher)
    health = Health(settings, reads_redis, pool, publisher)
    hub = StockHub(settings, shared.books)
    updates = OrderUpdates(settings)
    passwords = Passwords(settings.bcrypt_cost)
    memory = MemoryBudget(reads_redis, settings.redis_full_at_share)
    expected_wait = ExpectedWait(reads_redis, settings.max_wait_s)
    app = make_application(Cors(settings.cors_origins), lambda: health.draining)
    for route in (
        *_account_routes(shared, passwords),
        *_buying_routes(shared, memory, expected_wait),
        *_watching_routes(shared, hub, updates),
        *_operator_routes(shared, health),
        *_page_routes(),
    ):
        if not streams_only or route[1].startswith(OF_STREAMS):
            _add(app, *route)
    return Gateway(app, health, hub, updates, passwords, memory, expected_wait)


def _share(
    settings: SigningSettings, redis: Redis, reads_redis: Redis, pool: asyncpg.Pool, publisher: Publisher
) -> _Shared:
    reads = Pipeliner(reads_redis)
    books = Books(reads)
    addresses = Addresses(settings.trusted_proxies)
    return _Shared(
        settings=settings,
        redis=redis,
        reads_redis=reads_redis,
        reads=reads,
        books=books,
        pool=pool,
        publisher=publisher,
        identity=Identity(settings),
        addresses=addresses,
        bodies=SlowBodies(addresses),
        catalogue=Catalogue(books, pool),
    )


def _account_routes(shared: _Shared, passwords: Passwords) -> list[Route]:
    attempts = LoginAttempts(shared.reads_redis)
    registrations = Registrations(shared.reads_redis, shared.settings.registrations_per_minute_per_address)
    accounts = Accounts(
        shared.settings,
        shared.identity,
        shared.addresses,
        shared.bodies,
        shared.pool,
        passwords,
        attempts,
        registrations,
    )
    return [
        ("POST", "/api/auth/register", accounts.register),
        ("POST", "/api/auth/login", accounts.login),
        ("GET", "/api/auth/me", accounts.me),
    ]


def _buying_routes(shared: _Shared, memory: MemoryBudget, expected_wait: ExpectedWait) -> list[Route]:
    # Reservations of one trip share an fsync of Redis' log and are published together, so the linger is here, not there.
    inventory = Inventory(shared.redis, Pace(BUSY_PER_S, LINGER_S))
    purchases = (Purchases if tracing.on is None else TracedPurchases)(
        shared.settings,
        shared.identity,
        shared.addresses,
        shared.bodies,
        shared.catalogue,
        inventory,
        shared.publisher,
        memory,
        expected_wait,
    )
    return [("POST", "/api/order/buy-flash", purchases.buy)]


def _watching_routes(shared: _Shared, hub: StockHub, updates: OrderUpdates) -> list[Route]:
    reader = OrderReader(shared.reads, shared.pool)
    tickets = Tickets(shared.identity, shared.reads_redis)
    products = Products(shared.catalogue, shared.books, shared.pool)
    status = OrderStatus(shared.identity, shared.catalogue, reader, updates)
    orders = OrderList(shared.identity, status, ReadModel(shared.reads), shared.pool)
    return [
        ("POST", "/api/auth/ticket", tickets.issue),
        ("GET", "/api/products", products.show_all),
        ("GET", "/api/products/{id}", products.show),
        ("GET", "/api/order/{id}/status", status.show),
        ("GET", "/order/{id}/status", status.show),
        ("GET", "/api/orders", orders.list_own),
        ("GET", "/sse/stock/{id}", StockStream(hub, shared.catalogue, shared.addresses).stream),
        ("GET", "/sse/order/{id}", OrderStream(tickets, reader, updates).stream),
    ]


def _operator_routes(shared: _Shared, health: Health) -> list[Route]:
    ops = Ops(shared.settings, shared.identity, shared.bodies, shared.pool, shared.publisher)
    return [
        ("GET", "/api/ops/sales/{id}", ops.show),
        ("POST", "/api/ops/sales/{id}", ops.control),
        ("GET", "/health", health.overall),
        ("GET", "/health/live", health.live),
        ("GET", "/health/ready", health.ready),
        ("GET", "/metrics", health.metrics),
    ]


def _page_routes() -> list[Route]:
    api_docs.document()  # convert it at start, not while buyers wait
    return [
        ("GET", "/openapi.json", api_docs.openapi),
        ("GET", "/", site.landing),
        ("GET", "/favicon.ico", site.icon),
        ("GET", "/problems/{code}", site.problem),
        ("GET", "/docs", api_docs.page),
        ("GET", "/docs/", api_docs.page),
        ("GET", "/docs/{file}", api_docs.page_file),
    ]


def _add(app: web.Application, method: str, path: str, handler: Handler) -> None:
    resource = app.router.add_resource(path)
    resource.add_route(method, handler, expect_handler=answer_expect)
    if method == "GET" and not path.startswith("/sse/"):
        resource.add_route("HEAD", handler, expect_handler=answer_expect)
