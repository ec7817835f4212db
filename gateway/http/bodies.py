"""Reads request bodies under limits of size, time and type; writes JSON answers, and times in one format."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec
import orjson
from aiohttp import web
from aiohttp.web_protocol import RequestPayloadError

from gateway.http.problems import Problem
from gateway.http.slow_bodies import BODY_MAX_BYTES, SlowBodies
from schemas.ids import UserId

JSON = "application/json"
QUERY_TIMEOUT_S = 2.0  # of Postgres, while a client waits
_HEADERS = {"Content-Type": f"{JSON}; charset=utf-8", "Server": "thrones", "Cache-Control": "no-store"}
NO_MORE: Mapping[str, str] = {}
REPLAYED = {"Idempotent-Replayed": "true"}  # marks the answer to a repeated request, which changed nothing

T = TypeVar("T")


def answer(value: object, status: int = 200) -> web.Response:
    return answer_bytes(orjson.dumps(value), status)


def answer_bytes(body: bytes, status: int = 200, more: Mapping[str, str] = NO_MORE) -> web.Response:
    """`more`: headers in addition to those of every JSON answer."""
    return web.Response(status=status, body=body, headers={**_HEADERS, **more})


async def read_json(request: web.Request, slow: SlowBodies, user: UserId | None = None) -> bytes:
    """The body as it came; `user` if known. Raises Problem 415, 413 (and closes), 400, 429 or 503."""
    _check_type(request)
    length = request.content_length
    if length is not None and length > BODY_MAX_BYTES:
        raise Problem("too_large", close=True)
    content = request.content
    try:
        if content.is_eof():  # it came with the headers, as almost always: no timer needed
            body = content.read_nowait(-1) if content.total_bytes else b""
        else:
            body = await slow.read(request, user)
    except TimeoutError:
        raise Problem("invalid_request", "The body did not arrive in time.", close=True) from None
    except (web.RequestPayloadError, RequestPayloadError, ConnectionError):
        raise Problem("invalid_request", "The body is incomplete.", close=True) from None
    if len(body) > BODY_MAX_BYTES:
        raise Problem("too_large", close=True)
    return body


def _check_type(request: web.Request) -> None:
    headers = request.headers
    kind = headers.get("Content-Type")
    if kind != JSON:
        base, _, parameters = (kind or "").partition(";")
        if base.strip().lower() != JSON or parameters.strip().lower() not in ("", "charset=utf-8", 'charset="utf-8"'):
            raise Problem("unsupported_media_type")
    if "Content-Encoding" in headers:
        raise Problem("unsupported_media_type")


async def read_members(request: web.Request, slow: SlowBodies, kind: type[T], user: UserId | None = None) -> T:
    """A JSON object with exactly the members of `kind`, none of them twice. Not for the hot path."""
    body = await read_json(request, slow, user)
    try:
        value = msgspec.json.decode(body, type=kind)
        repeated = repeated_member(body)
    except (ValueError, RecursionError) as error:  # msgspec's and json's errors are ValueErrors
        raise Problem("invalid_request", f"The body cannot be read: {reason(error)}.") from None
    if repeated is not None:
        raise duplicate_member(repeated)
    return value


def duplicate_member(member: str | None) -> Problem:
    """`member` is a known member of the route: unknown ones are refused earlier."""
    return Problem("invalid_request", f"The member {member} is given twice.")


def reason(error: Exception) -> str:
    """What is wrong with a body, in printable ASCII. Of the client's input it contains only member names."""
    text = str(error) if isinstance(error, msgspec.MsgspecError) else "not JSON as this route expects it"
    return "".join(c if c.isprintable() and c.isascii() else "?" for c in text)[:200]


class Repeated(ValueError):
    """A member occurs more than once; the text names it."""


def repeated_member(body: bytes) -> str | None:
    """The name of a member that occurs more than once in a JSON object."""
    try:
        json.loads(body, object_pairs_hook=_refuse_repeats)
    except Repeated as repeated:
        return str(repeated)
    return None


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise Repeated(name)
        members[name] = value
    return members


def iso_ms(at_ms: int) -> str:
    """Milliseconds since the epoch as 2026-11-22T10:00:00.000Z."""
    return iso(datetime.fromtimestamp(at_ms / 1000, UTC))


def iso(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
