"""Pages for browsers: the landing page, an icon, and a page for the `type` of each problem."""

from html import escape
from string import Template

from aiohttp import web

from gateway.http.bodies import answer
from gateway.http.problems import KINDS, Problem, ProblemKind, described, public_code
from gateway.pages.api_docs import HEADERS, file, read

# By public code. If two kinds share a code, the page shows the first.
_BY_CODE: dict[str, ProblemKind] = {}
for _name, _kind in KINDS.items():
    _BY_CODE.setdefault(public_code(_name), _kind)


async def landing(_request: web.Request) -> web.Response:
    return file("index.html")


async def icon(_request: web.Request) -> web.Response:
    return file("favicon-32x32.png")


async def problem(request: web.Request) -> web.Response:
    """The meaning of a problem's code: a page for browsers, JSON for other clients."""
    code = request.match_info["code"]
    kind = _BY_CODE.get(code)
    if kind is None:
        raise Problem("not_found")
    if "text/html" in request.headers.get("Accept", ""):
        return _page(code, kind)
    response = answer(described(code, kind))
    response.headers["Vary"] = "Accept"
    return response


def _page(code: str, kind: ProblemKind) -> web.Response:
    retryable = "can succeed later" if kind.retryable else "will fail again"
    texts = {
        "code": code,
        "title": kind.title,
        "status": str(kind.status),
        "detail": kind.detail,
        "retryable": retryable,
    }
    page = Template(read("problem.html").decode()).substitute({name: escape(text) for name, text in texts.items()})
    return web.Response(text=page, headers={**HEADERS, "Content-Type": "text/html; charset=utf-8", "Vary": "Accept"})
