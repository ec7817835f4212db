"""The gateway's error answers: one table of codes, RFC 9457 problem details, `Retry-After` on every 429 and 503."""

import random
from dataclasses import dataclass
from typing import Any

import orjson
from aiohttp import web

from infra.logs import REQUEST_ID

CONTENT_TYPE = "application/problem+json"


@dataclass(frozen=True, slots=True)
class ProblemKind:
    """The fixed parts of one code. `retry_after_s` is a range, so that clients refused together do not return together."""

    status: int
    title: str
    detail: str
    retryable: bool = False
    retry_after_s: tuple[int, int] | None = None
    headers: tuple[tuple[str, str], ...] = ()


KINDS: dict[str, ProblemKind] = {
    "invalid_request": ProblemKind(400, "Invalid request", "This route cannot read the request."),
    "unauthorized": ProblemKind(
        401, "Unauthorized", "A valid bearer token is needed.", headers=(("WWW-Authenticate", "Bearer"),)
    ),
    "invalid_credentials": ProblemKind(
        401, "Unauthorized", "Email or password is wrong.", headers=(("WWW-Authenticate", "Bearer"),)
    ),
    "forbidden": ProblemKind(403, "Forbidden", "Your role does not allow this."),
    "not_found": ProblemKind(404, "Not found", "It does not exist, or it is not yours."),
    "method_not_allowed": ProblemKind(405, "Method not allowed", "This route does not support this method."),
    "sold_out": ProblemKind(409, "Sold out", "Not enough units are left."),
    "user_limit": ProblemKind(409, "Limit reached", "You have as many units of this product as one buyer may have."),
    "sale_not_open": ProblemKind(409, "Sale not open", "The sale has not opened yet.", retryable=True),
    "sale_closed": ProblemKind(409, "Sale closed", "The sale is over."),
    "email_taken": ProblemKind(409, "Email taken", "An account with this email exists."),
    "too_large": ProblemKind(413, "Too large", "The body is larger than 16 KiB."),
    "unsupported_media_type": ProblemKind(
        415, "Unsupported media type", "Send application/json without a content encoding."
    ),
    "key_reused": ProblemKind(422, "Key reused", "This Idempotency-Key was used with another body."),
    "rate_limited": ProblemKind(429, "Too many requests", "Slow down.", retryable=True, retry_after_s=(1, 1)),
    "header_too_large": ProblemKind(431, "Header too large", "A header line is longer than 8 KiB."),
    "busy": ProblemKind(
        503, "Busy", "Too many requests are in progress; nothing was reserved.", retryable=True, retry_after_s=(1, 5)
    ),
    "unavailable": ProblemKind(
        503,
        "Unavailable",
        "A server that this needs is down; nothing was reserved.",
        retryable=True,
        retry_after_s=(1, 3),
    ),
    "stock_not_verified": ProblemKind(
        503, "Stock not verified", "The books are being checked; nothing was reserved.", True, (1, 3)
    ),
    "sale_paused": ProblemKind(503, "Sale paused", "The sale is paused; nothing was reserved.", True, (5, 10)),
    "outcome_unknown": ProblemKind(
        504,
        "Outcome unknown",
        "The order may or may not be placed; ask for its status, or repeat with the same key.",
        True,
    ),
}


def public_code(code: str) -> str:
    """The code that clients see. Wrong credentials are `unauthorized` too: the interface has one code for 401."""
    return "unauthorized" if KINDS[code].status == 401 else code


def described(code: str, kind: ProblemKind) -> dict[str, object]:
    """The fixed members of a problem with this code; `code` is the public one."""
    return {
        "type": f"/problems/{code}",
        "title": kind.title,
        "status": kind.status,
        "detail": kind.detail,
        "code": code,
        "retryable": kind.retryable,
    }


class Problem(Exception):
    """Raise it anywhere in a handler; the outermost middleware answers with it. Extra `members` go into the body."""

    def __init__(
        self,
        code: str,
        detail: str | None = None,
        *,
        retry_after_s: int | None = None,
        headers: dict[str, str] | None = None,
        close: bool = False,
        **members: Any,
    ) -> None:
        super().__init__(code)
        self.code = code
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.headers = headers
        self.close = close
        self.members = members

    def answer(self) -> web.Response:
        kind = KINDS[self.code]
        headers = {"Content-Type": CONTENT_TYPE, "Server": "thrones", "Cache-Control": "no-store", **dict(kind.headers)}
        if self.retry_after_s is not None or kind.retry_after_s is not None:
            wait_s = self.retry_after_s if self.retry_after_s is not None else _spread(kind)
            headers["Retry-After"] = str(wait_s)
        headers.update(self.headers or {})
        response = web.Response(status=kind.status, body=self.body(), headers=headers)
        if self.close:
            response.force_close()
        return response

    def body(self) -> bytes:
        kind = KINDS[self.code]
        return orjson.dumps(
            {
                **described(public_code(self.code), kind),
                "detail": self.detail or kind.detail,
                "error": kind.title,
                **({} if (request_id := REQUEST_ID.get()) is None else {"requestId": request_id}),
                **self.members,
            }
        )


def _spread(kind: ProblemKind) -> int:
    low, high = kind.retry_after_s or (1, 1)
    return random.randint(low, high)
