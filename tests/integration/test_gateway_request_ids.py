"""X-Request-Id on every answer, in problems and on log lines: the client's own where it is sane."""

import asyncio
import re

import pytest
import structlog
from structlog.testing import capture_logs

from infra.logs import REQUEST_ID, add_request_id

from .gateway_fixtures import Answer, GatewayClient, gateway, settings
from .test_gateway_http import raw

__all__ = ["gateway", "settings"]

OURS = re.compile(r"[0-9a-f]{12}-[0-9a-f]{8}")


async def test_every_answer_has_an_id_and_problems_repeat_it(gateway: GatewayClient) -> None:
    """JSON, pages, streams, 204, refusals by routes and by the router; no two the same."""
    product = await gateway.product(1)
    order_id = (await gateway.buy({"productId": product})).json["orderId"]
    seen = set()
    for method, path in (
        ("GET", "/health/live"),
        ("HEAD", "/api/products"),
        ("GET", "/"),
        ("GET", "/docs"),
        ("GET", "/metrics"),
        ("GET", "/nothing"),
        ("PUT", "/api/orders"),
        ("GET", "/api/orders"),
        ("POST", "/api/auth/login"),
        ("GET", f"/sse/stock/{product}"),
    ):
        async with gateway.session.request(method, gateway.url + path) as response:
            given = response.headers["X-Request-Id"]
            assert OURS.fullmatch(given), path
            seen.add(given)
            if response.headers["Content-Type"] == "application/problem+json":
                assert (await response.json(content_type=None))["requestId"] == given
    assert len(seen) == 10
    own = {**gateway.bearer, "X-Request-Id": "a.B-3_"}
    async with gateway.session.get(f"{gateway.url}/sse/order/{order_id}", headers=own) as response:
        assert response.headers["X-Request-Id"] == "a.B-3_"


@pytest.mark.parametrize("given", ["x", "A" * 128, "trace-1.2_3"])
async def test_an_id_that_is_sane_is_kept(gateway: GatewayClient, given: str) -> None:
    answer = await gateway.ask("GET", "/nothing", headers={"X-Request-Id": given})
    assert (answer.headers["X-Request-Id"], answer.json["requestId"]) == (given, given)


@pytest.mark.parametrize("given", ["", "A" * 129, "two words", 'quote"', "ümlaut", "<script>", "a/b", "a\tb"])
async def test_any_other_is_replaced(gateway: GatewayClient, given: str) -> None:
    """It goes into headers, bodies and logs as it is, so nothing that could mean something there is taken."""
    answer = await gateway.ask("GET", "/nothing", headers={"X-Request-Id": given})
    assert OURS.fullmatch(answer.headers["X-Request-Id"])
    assert answer.json["requestId"] == answer.headers["X-Request-Id"]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"no request at all\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 9_000 + b"\r\n\r\n",
        b"POST /api/auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99999\r\n"
        b"Expect: 100-continue\r\n\r\n",
        b"POST /api/auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99999\r\n\r\n",
    ],
)
async def test_refusals_from_below_the_routes_have_one_too(gateway: GatewayClient, request_bytes: bytes) -> None:
    """By the parser, and before the body is read."""
    head, _, body = (await raw(gateway, request_bytes)).partition(b"\r\n\r\n")
    [given] = re.findall(rb"X-Request-Id: (\S+)", head)
    assert OURS.fullmatch(given.decode())
    assert b'"requestId":"%s"' % given in body


async def test_log_lines_of_a_request_carry_its_id(gateway: GatewayClient) -> None:
    """A failed login is logged; requests beside it, on the same connection or at once, do not share the id."""
    login = {"email": "nobody@winterfell.example", "password": "not the password"}
    ids = [f"login-{number}" for number in range(4)]

    def failed(given: str) -> "asyncio.Future[Answer]":
        headers = {"X-Request-Id": given}
        return asyncio.ensure_future(gateway.ask("POST", "/api/auth/login", json=login, headers=headers))

    with capture_logs(processors=[add_request_id]) as lines:
        answers = await asyncio.gather(*map(failed, ids))
    assert {answer.status for answer in answers} == {401}
    assert sorted(line["request_id"] for line in lines if line["event"] == "failed login") == ids
    assert REQUEST_ID.get() is None


def test_lines_outside_a_request_have_none() -> None:
    with capture_logs(processors=[add_request_id]) as lines:
        structlog.get_logger().info("starting")
    assert "request_id" not in lines[0]
