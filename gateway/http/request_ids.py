"""X-Request-Id: the client's own where it is sane, else one of ours; in the answer, in problems and on log lines.

An id of ours is a random prefix of the process and a counter: unique, always of one length, and as cheap as it must be on
the hot path.
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
    """Give the request its id. Each request is a task of its own, so the id is that of everything done for it."""
    given = request.headers.get(HEADER)
    REQUEST_ID.set(given if given is not None and _SANE.fullmatch(given) else next(_own))


def mark(response: web.StreamResponse) -> None:
    """Put the id of the request under way on its answer."""
    if (request_id := REQUEST_ID.get()) is not None:
        response.headers[HEADER] = request_id
