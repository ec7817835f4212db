"""The gateway's routes and what each is made of; requests in, answers out, every refusal a problem."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import asyncpg
from aiohttp import web
from aiohttp.typedefs import Middleware

from gateway.accounts.identity import Identity
from gateway.accounts.login_attempts import LoginAttempts
from gateway.accounts.passwords import Passwords
from gateway.accounts.registrations import Registrations
from gateway.accounts.routes import Accounts
from gateway.buying.catalogue import Catalogue
from gateway.buying.memory_budget import MemoryBudget
from gateway.buying.purchases import Orders
from gateway.buying.traced_orders import TracedOrders
from gateway.http import request_ids
from gateway.http.addresses import Addresses
from gateway.http.cors import Cors
from gateway.http.problems import Problem
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
from infra.logs import get_logger
from infra.metrics.definitions import GATEWAY_REFUSED
from infra.pace import Pace
from infra.redis.client import Redis
from infra.redis.pipeliner import Pipeliner
from infra.settings import SigningSettings
from sale.books.inventory import Inventory

from .health import Health
from .ops import Ops

OF_STREAMS = ("/sse/", "/health", "/metrics")  # all that a worker of `thrones sse` serves
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_refused = GATEWAY_REFUSED.make()
log = get_logger()


@dataclass(frozen=True, slots=True)
class Gateway:
    """The application and the parts of it that a worker starts, drains and closes."""

    app: web.Application
    health: Health
    hub: StockHub
    updates: OrderUpdates
    passwords: Passwords
    memory: MemoryBudget


def make_gateway(
    settings: SigningSettings,
    redis: Redis,
    reads_redis: Redis,
    pool: asyncpg.Pool,
    publisher: Publisher,
    *,
    streams_only: bool = False,
) -> Gateway:
    """`reads_redis` has connections of its own, so that reading never delays a reservation.

    `streams_only` is for those who split the streams off (`thrones sse`): the same routes less those of the API.
    """
    reads = Pipeliner(reads_redis)
    identity = Identity(settings)
    addresses = Addresses(settings.trusted_proxies)
    bodies = SlowBodies(addresses)
    catalogue = Catalogue(reads, pool)
    passwords = Passwords(settings.bcrypt_cost)
    updates = OrderUpdates(settings)
    hub = StockHub(settings, reads)
    health = Health(settings, reads_redis, pool, publisher)
    reader = OrderReader(reads, pool)
    tickets = Tickets(identity, reads_redis)
    # What travels to Redis together shares a flush of its log and is published together: the publisher's linger, taken here.
    memory = MemoryBudget(reads_redis, settings.redis_full_at_share)
    inventory = Inventory(redis, Pace(BUSY_PER_S, LINGER_S))
    orders = (Orders if tracing.on is None else TracedOrders)(
        settings, identity, addresses, bodies, catalogue, inventory, publisher, memory
    )
    attempts = LoginAttempts(reads_redis)
    registrations = Registrations(reads_redis, settings.registrations_per_minute_per_address)
    accounts = Accounts(settings, identity, addresses, bodies, pool, passwords, attempts, registrations)
    products = Products(catalogue, reads, pool)
    status = OrderStatus(identity, catalogue, reader, updates)
    order_list = OrderList(identity, status, reads, pool)
    ops = Ops(settings, identity, bodies, pool, publisher)
    api_docs.document()  # converted now, not while buyers wait
    cors = Cors(settings.cors_origins)
    app = web.Application(middlewares=[_problems(health, cors)])
    app.on_response_prepare.append(_mark(cors))
    routes: list[tuple[str, str, Handler]] = [
        ("POST", "/api/auth/register", accounts.register),
        ("POST", "/api/auth/login", accounts.login),
        ("GET", "/api/auth/me", accounts.me),
        ("POST", "/api/auth/ticket", tickets.issue),
        ("GET", "/api/products", products.all),
        ("GET", "/api/products/{id}", products.one),
        ("POST", "/api/order/buy-flash", orders.buy),
        ("GET", "/api/order/{id}/status", status.one),
        ("GET", "/order/{id}/status", status.one),
        ("GET", "/api/orders", order_list.mine),
        ("GET", "/api/ops/sales/{id}", ops.show),
        ("POST", "/api/ops/sales/{id}", ops.control),
        ("GET", "/sse/stock/{id}", StockStream(hub, catalogue, addresses).stream),
        ("GET", "/sse/order/{id}", OrderStream(tickets, reader, updates).stream),
        ("GET", "/health", health.overall),
        ("GET", "/health/live", health.live),
        ("GET", "/health/ready", health.ready),
        ("GET", "/metrics", health.metrics),
        ("GET", "/openapi.json", api_docs.openapi),
        ("GET", "/", site.landing),
        ("GET", "/favicon.ico", site.icon),
        ("GET", "/problems/{code}", site.problem),
        ("GET", "/docs", api_docs.page),
        ("GET", "/docs/", api_docs.page),
        ("GET", "/docs/{file}", api_docs.page_file),
    ]
    for method, path, handler in routes:
        if streams_only and not path.startswith(OF_STREAMS):
            continue
        resource = app.router.add_resource(path)
        resource.add_route(method, handler, expect_handler=_expect)
        if method == "GET" and not path.startswith("/sse/"):
            resource.add_route("HEAD", handler, expect_handler=_expect)
    return Gateway(app, health, hub, updates, passwords, memory)


def _mark(cors: Cors) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    """What every answer carries, streams and refusals included."""

    async def mark(request: web.Request, response: web.StreamResponse) -> None:
        request_ids.mark(response)
        cors.mark(request, response)

    return mark


def _problems(health: Health, cors: Cors) -> Middleware:
    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        request_ids.begin(request)
        try:
            response = await handler(request)
        except Problem as problem:
            response = _refuse(problem)
        except web.HTTPMethodNotAllowed as error:
            response = cors.preflight(request, error.allowed_methods) or _refuse(_problem_of(error))
        except web.HTTPException as error:
            response = _refuse(_problem_of(error))
        except ConnectionError:
            raise  # the client has gone: aiohttp ends the connection
        except Exception:
            # A fault of ours. A reading may be repeated; of a writing nobody knows how far it came.
            log.exception("unhandled error", path=request.path)
            code = "unavailable" if request.method in ("GET", "HEAD") else "outcome_unknown"
            response = _refuse(Problem(code, "Something went wrong here.", close=True))
        if health.draining and not response.prepared:
            response.force_close()
        return response

    return middleware


def _refuse(problem: Problem) -> web.Response:
    _refused.labels(problem.code).inc()
    return problem.answer()


def _problem_of(error: web.HTTPException) -> Problem:
    match error:
        case web.HTTPMethodNotAllowed():
            return Problem("method_not_allowed", headers={"Allow": ", ".join(sorted(error.allowed_methods))})
        case web.HTTPNotFound():
            return Problem("not_found")
        case web.HTTPRequestEntityTooLarge():
            return Problem("too_large", close=True)
        case _:
            return Problem("invalid_request", close=True)


async def _expect(request: web.Request) -> web.StreamResponse | None:
    """`Expect: 100-continue` gets its 100, anything else 400. Asked before any middleware."""
    request_ids.begin(request)
    if request.headers.get("Expect", "").lower() != "100-continue":
        return Problem("invalid_request", "This Expect cannot be met.", close=True).answer()
    if (request.content_length or 0) > 16 * 1024:
        return Problem("too_large", close=True).answer()
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # the answer itself has not begun
    return None
