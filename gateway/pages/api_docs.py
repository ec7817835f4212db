"""Serves the OpenAPI document (schemas/openapi.yaml) as /openapi.json, and a page that shows it. All files are our own.

A worker reads a file on its first request.
"""

from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

import orjson
import yaml
from aiohttp import web
from openapi_ui_bundles import swagger_ui

from gateway.http.bodies import answer_bytes
from gateway.http.problems import Problem

CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
}
OWN = ("docs.js", "docs.css")
SHARED = ("site.css",)  # also used by the other pages
BUNDLED = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png")
# Only our own files; Swagger UI's icons are data: images.
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
    described = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - both are safe
    for response in _responses(described):
        response.setdefault("headers", {})["X-Request-Id"] = {"$ref": "#/components/headers/RequestId"}
    return orjson.dumps(described)


def _responses(described: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All responses of the document, to which the common headers are added."""
    yield from described["components"]["responses"].values()
    for item in described["paths"].values():
        for operation in item.values():
            if isinstance(operation, dict):
                yield from (response for response in operation["responses"].values() if "$ref" not in response)


async def openapi(_request: web.Request) -> web.Response:
    return answer_bytes(document())


async def page(_request: web.Request) -> web.Response:
    return file("docs.html")


async def page_file(request: web.Request) -> web.Response:
    """A file of the page. Only the files named above exist, so no path can lead elsewhere."""
    name = request.match_info["file"]
    if name not in OWN and name not in SHARED and name not in BUNDLED:
        raise Problem("not_found")
    return file(name)


def file(name: str) -> web.Response:
    """One of our files, with the headers of a page."""
    content_type = CONTENT_TYPES[name[name.rindex(".") :]]
    return web.Response(body=read(name), headers={**HEADERS, "Content-Type": content_type})


@cache
def read(name: str) -> bytes:
    folder: Traversable = swagger_ui.static_path if name in BUNDLED else files("gateway") / "pages"
    return folder.joinpath(name).read_bytes()
