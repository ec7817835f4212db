"""Middleware for every request: its id, CORS, and problem answers. No exception reaches a client as a bare 500."""

from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Middleware

from gateway.http import request_ids
from gateway.http.cors import Cors
from gateway.http.problems import Problem
from gateway.http.slow_bodies import BODY_MAX_BYTES
from infra.logs import get_logger
from infra.metrics.definitions import GATEWAY_REFUSED

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_refused = GATEWAY_REFUSED.make()
log = get_logger()


def make_application(cors: Cors, is_draining: Callable[[], bool]) -> web.Application:
    """An application without routes. While it drains, each answer closes its connection."""
    app = web.Application(middlewares=[_problems(cors, is_draining)])
    app.on_response_prepare.append(_add_headers(cors))
    return app


def _add_headers(cors: Cors) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    """Set the common headers of every answer, including streams and problems."""

    async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
        request_ids.add_header(response)
        cors.add_headers(request, response)

    return add_headers


def _problems(cors: Cors, is_draining: Callable[[], bool]) -> Middleware:
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
            # A bug of ours. A read may be repeated; how far a write came is unknown.
            log.exception("unhandled error", path=request.path)
            code = "unavailable" if request.method in ("GET", "HEAD") else "outcome_unknown"
            response = _refuse(Problem(code, "Something went wrong here.", close=True))
        if is_draining() and not response.prepared:
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


async def answer_expect(request: web.Request) -> web.StreamResponse | None:
    """Answer `Expect: 100-continue` with 100, any other with 400. aiohttp calls it before all middleware."""
    request_ids.begin(request)
    if request.headers.get("Expect", "").lower() != "100-continue":
        return Problem("invalid_request", "This Expect header is not supported.", close=True).answer()
    if (request.content_length or 0) > BODY_MAX_BYTES:
        return Problem("too_large", close=True).answer()
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # aiohttp counts it as part of the answer, which has not begun
    return None
