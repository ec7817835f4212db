"""One gateway worker: serves requests from an inherited listening socket until it is stopped, then drains.

Draining: readiness answers 503; the worker accepts no more connections (the other workers accept from the same socket);
every answer closes its connection; streams end; requests in progress finish; Kafka acknowledges the rest; exit 0.
"""

import asyncio
import math
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from gateway.http.acceptor import Acceptor
from gateway.http.addresses import Addresses
from gateway.http.server import connection_factory
from infra import tracing
from infra.kafka.publisher import Publisher
from infra.lifecycle import Stop, background
from infra.logs import get_logger
from infra.metrics.serving import unshare
from infra.postgres.pool import connect_postgres
from infra.redis.client import connect_redis
from infra.settings import SigningSettings
from infra.supervision import registry

from .app import Gateway, make_gateway

RESERVE_CONNECTIONS = 4
READ_CONNECTIONS = 8
LAST_REQUESTS_S = 3.0  # connections stay open this long for requests that clients sent before they knew
IN_FLIGHT_S = 6.0  # any answer is given within 5 s
POLL_INTERVAL_S = 0.05

log = get_logger()


async def run_worker(settings: SigningSettings, sock: socket.socket, stop: Stop, *, role: str = "gateway") -> None:
    """Serve until `stop`, then drain within 25 s. Role `sse` serves only the streams."""
    async with _gateway(settings, role) as gateway:
        runner = web.AppRunner(gateway.app, shutdown_timeout=IN_FLIGHT_S, handle_signals=False)
        await runner.setup()
        acceptor = Acceptor(sock, connection_factory(runner, Addresses(settings.trusted_proxies)))
        acceptor.start()
        registry.register(role, settings.thrones_member, sock.getsockname()[1], state_dir=settings.thrones_state_dir)
        log.info("serving", port=sock.getsockname()[1])
        async with background(gateway.hub.run(), gateway.memory.run(), gateway.expected_wait.run()):
            await stop.wait()
            log.info("draining")
            await _drain(gateway, runner, acceptor)
    log.info("drained")


async def _drain(gateway: Gateway, runner: web.AppRunner, acceptor: Acceptor) -> None:
    gateway.health.draining = True
    acceptor.close()
    gateway.updates.drain()
    gateway.hub.drain()
    # A request may be on its way on a keep-alive connection: the connection stays open, and the answer closes it.
    loop = asyncio.get_running_loop()
    until = loop.time() + LAST_REQUESTS_S
    while runner.server and runner.server.connections and loop.time() < until:  # noqa: ASYNC110 - aiohttp has no event for it
        await asyncio.sleep(POLL_INTERVAL_S)
    try:
        async with asyncio.timeout(IN_FLIGHT_S):
            await runner.cleanup()
    except TimeoutError:
        log.warning("requests cut off", connections=len(runner.server.connections) if runner.server else 0)


@asynccontextmanager
async def _gateway(settings: SigningSettings, role: str) -> AsyncIterator[Gateway]:
    """All parts of a worker. It starts even if a server is down; its health shows that."""
    tracing.start(settings)
    redis = connect_redis(settings, connections=RESERVE_CONNECTIONS)
    reads = connect_redis(settings, connections=READ_CONNECTIONS)
    pool = await connect_postgres(settings)
    publisher = await Publisher.start(settings, busy_per_s=math.inf)  # reserved together, published together
    gateway = make_gateway(settings, redis, reads, pool, publisher, streams_only=role == "sse")
    try:
        yield gateway
    finally:
        gateway.passwords.close()
        await asyncio.gather(gateway.updates.close(), gateway.hub.close(), publisher.stop())
        pool.terminate()
        await redis.aclose()
        await reads.aclose()
        unshare()
        tracing.stop()
