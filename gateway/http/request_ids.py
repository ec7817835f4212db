"""X-Request-Id: the client's id if it is valid, else a new one. It is in the answer, in problems and on log lines.

A new id is a random prefix per process and a counter: unique, of constant length, and cheap enough for the hot path.
"""

import re
import secrets
from collections.abc import Iterator
from itertools import count

from aiohttp import web

from infra.logs import REQUEST_ID

HEADER = "X-Request-Id"
_SANE = re.compile(r"[A-Za-z0-9._-]{1,128}")


def _ids() -> Iterator[str]:
    prefix = secrets.token_hex(6)
    return (f"{prefix}-{number:08x}" for number in count(1))


_own = _ids()


def begin(request: web.BaseRequest) -> None:
    """Give the request its id. Each request has its own task, so the context variable covers all work for it."""
    given = request.headers.get(HEADER)
    REQUEST_ID.set(given if given is not None and _SANE.fullmatch(given) else next(_own))


def add_header(response: web.StreamResponse) -> None:
    """Put the id of the current request on its answer."""
    if (request_id := REQUEST_ID.get()) is not None:
        response.headers[HEADER] = request_id
