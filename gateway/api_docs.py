"""The OpenAPI document in (schemas/openapi.yaml), /openapi.json and a page that shows it out, without anything from elsewhere.

The files are read when they are first asked for: a worker that nobody asks keeps none of them.
"""

from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

import orjson
import yaml
from aiohttp import web
from openapi_ui_bundles import swagger_ui

from .problems import Problem
from .wire import answer_bytes

CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
}
OWN = ("docs.js", "docs.css")
BUNDLED = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png")
# Nothing but files of ours; Swagger UI's icons are data: images.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Cache-Control": "public, max-age=3600",
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "Server": "thrones",
    "X-Content-Type-Options": "nosniff",
}


@cache
def document() -> bytes:
    """The OpenAPI document as JSON."""
    text = files("schemas").joinpath("openapi.yaml").read_text("utf-8")
    return orjson.dumps(yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))  # noqa: S506 - both are safe


async def openapi(_request: web.Request) -> web.Response:
    return answer_bytes(document())


async def page(_request: web.Request) -> web.Response:
    return _file("docs.html")


async def page_file(request: web.Request) -> web.Response:
    """A file of the page: only those named above, so no path can lead elsewhere."""
    name = request.match_info["file"]
    if name not in OWN and name not in BUNDLED:
        raise Problem("not_found")
    return _file(name)


def _file(name: str) -> web.Response:
    content_type = CONTENT_TYPES[name[name.rindex(".") :]]
    return web.Response(body=_read(name), headers={**HEADERS, "Content-Type": content_type})


@cache
def _read(name: str) -> bytes:
    folder: Traversable = swagger_ui.static_path if name in BUNDLED else files("gateway") / "pages"
    return folder.joinpath(name).read_bytes()
