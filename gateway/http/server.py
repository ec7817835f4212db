"""HTTP connections under limits of number, size and time. A request that cannot be parsed gets a problem answer too."""

import asyncio
import resource
from collections.abc import Callable
from http import HTTPStatus

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import RequestHandler

from gateway.http import request_ids
from gateway.http.addresses import Addresses
from gateway.http.problems import Problem
from gateway.http.request_parser import RequestParser
from gateway.http.shares import Place, Shares, SharesFull

CONNECTIONS_MAX = 30_000  # per worker: the maximum of streams, and half as many other connections
KEEP_ALIVE_S = 10.0  # also the time limit for the request line and headers
LINE_MAX_BYTES = 8 * 1024
HEADERS_MAX = 64
LINGER_S = 2.0  # read a refused body for this long: a reset could destroy the answer


class HttpProtocol(RequestHandler):
    """aiohttp's protocol with our limits and errors. `on_lost` is called once with the reason when the client has gone."""

    __slots__ = ("_peers", "_place", "on_lost")

    def __init__(self, manager: web.Server, peers: "Peers", *, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            manager,
            loop=loop,
            keepalive_timeout=KEEP_ALIVE_S,
            access_log=None,  # type: ignore[arg-type] # None means no access log (docs of web.AppRunner)
            max_line_size=LINE_MAX_BYTES,
            max_field_size=LINE_MAX_BYTES,
            max_headers=HEADERS_MAX,
            lingering_time=LINGER_S,
            auto_decompress=False,
        )
        self._parser = RequestParser(
            self, loop, line_max_bytes=LINE_MAX_BYTES, headers_max=HEADERS_MAX, queue_max=self._max_msg_queue_size
        )
        self._peers = peers
        self._place: Place | None = None
        self.on_lost: Callable[[BaseException | None], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        try:
            self._place = self._peers.take(transport, self.force_close)
        except SharesFull:
            self.force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._peers.leave(self._place)
        if self.on_lost is not None:
            self.on_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer bytes that are not a request with 400 or 431, and close. Any other error here is a bug of ours."""
        request_ids.begin(request)  # no middleware runs for it
        if status != HTTPStatus.BAD_REQUEST:
            self.log_exception("unhandled error", exc_info=exc)
            code = "unavailable"
        else:
            code = "header_too_large" if isinstance(exc, LineTooLong) else "invalid_request"
        response = Problem(code, close=True).answer()
        request_ids.add_header(response)
        return response


class Peers:
    """Limits the open connections per client address, before they have sent anything. Connections of trusted proxies are
    not counted: each proxy limits its own clients."""

    def __init__(self, addresses: Addresses) -> None:
        self._addresses = addresses
        self._open = Shares(connections_max())

    def take(self, transport: asyncio.BaseTransport, on_displaced: Callable[[], None]) -> Place | None:
        """Raises SharesFull."""
        peer = transport.get_extra_info("peername")
        who = self._addresses.of_peer(peer[0]) if peer else None
        return None if who is None else self._open.take(who, on_displaced)

    def leave(self, place: Place | None) -> None:
        if place is not None:
            self._open.leave(place)


def connections_max() -> int:
    """Below the limit of open files, so that this process can always accept one more connection and reach its servers."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return CONNECTIONS_MAX if files == resource.RLIM_INFINITY else min(CONNECTIONS_MAX, files * 3 // 4)


def connection_factory(runner: web.AppRunner, addresses: Addresses) -> Callable[[], HttpProtocol]:
    """Makes the protocol of an accepted connection; `runner` must be set up."""
    peers = Peers(addresses)
    manager, loop = runner.server, asyncio.get_running_loop()
    assert manager is not None
    return lambda: HttpProtocol(manager, peers, loop=loop)
