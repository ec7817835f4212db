"""Cross-origin requests (Fetch Standard, CORS protocol): every answer carries what CORS_ORIGINS allows."""

from collections.abc import Iterable

from aiohttp import web

# The headers that a script of another origin may send and read beyond the default ones.
REQUEST_HEADERS = "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, X-Request-Id, traceparent"
ANSWER_HEADERS = "Allow, Idempotent-Replayed, Location, Retry-After, WWW-Authenticate, X-Request-Id"
REMEMBERED_S = 600
ANY = "*"


class Cors:
    """`origins` is the allow-list, or only `*` for all origins (then without credentials)."""

    def __init__(self, origins: Iterable[str]) -> None:
        self._origins = frozenset(origins)
        self._any = ANY in self._origins

    def add_headers(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Set the headers that say who may read this answer. `Vary` tells caches that it depends on the origin."""
        if not self._origins:
            return
        headers = response.headers
        if self._any:
            headers["Access-Control-Allow-Origin"] = ANY
        else:
            headers["Vary"] = f"{headers['Vary']}, Origin" if "Vary" in headers else "Origin"
            origin = request.headers.get("Origin")
            if origin not in self._origins:
                return
            headers["Access-Control-Allow-Origin"] = origin
            headers["Access-Control-Allow-Credentials"] = "true"
        headers["Access-Control-Expose-Headers"] = ANSWER_HEADERS

    def preflight(self, request: web.Request, methods: Iterable[str]) -> web.Response | None:
        """The answer to a browser's preflight; None for any other OPTIONS request and for origins that are not allowed."""
        asked = request.headers.get("Access-Control-Request-Method")
        origin = request.headers.get("Origin")
        if request.method != "OPTIONS" or asked is None or origin is None:
            return None
        if not (self._any or origin in self._origins):
            return None
        return web.Response(
            status=204,
            headers={
                "Access-Control-Allow-Methods": ", ".join(sorted(methods)),
                "Access-Control-Allow-Headers": REQUEST_HEADERS,
                "Access-Control-Max-Age": str(REMEMBERED_S),
                "Vary": "Access-Control-Request-Method, Access-Control-Request-Headers",
                "Cache-Control": "no-store",
                "Server": "thrones",
            },
        )
