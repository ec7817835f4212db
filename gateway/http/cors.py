"""Cross-origin requests (Fetch Standard, CORS protocol): what CORS_ORIGINS allows is said on every answer; else nothing is."""

from collections.abc import Iterable

from aiohttp import web

# What a script of another origin may send and read beyond what every script may.
REQUEST_HEADERS = "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, X-Request-Id, traceparent"
ANSWER_HEADERS = "Allow, Idempotent-Replayed, Location, Retry-After, WWW-Authenticate, X-Request-Id"
REMEMBERED_S = 600
ANY = "*"


class Cors:
    """`origins` is the allow-list, or `*` alone for everybody (then never with credentials)."""

    def __init__(self, origins: Iterable[str]) -> None:
        self._origins = frozenset(origins)
        self._any = ANY in self._origins

    def mark(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Say who may read this answer. It depends on the origin that asked, which caches must know."""
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
        """The answer to a browser that asks before it sends; None for any other OPTIONS, and for origins not allowed."""
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
