"""Requests from pages of other origins: what CORS_ORIGINS allows a browser is told on every kind of answer, and nothing else."""

from collections.abc import AsyncIterator

import pytest
from pydantic import ValidationError

from infra.settings import Settings, SigningSettings

from .gateway_fixtures import Answer, GatewayClient, gateway, gateway_on, settings

__all__ = ["gateway", "settings"]

SHOP, ELSEWHERE = "https://shop.example", "https://elsewhere.example"
ASKING = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,idempotency-key"}


@pytest.fixture
async def shared(settings: SigningSettings) -> AsyncIterator[GatewayClient]:
    async with gateway_on(settings, cors_origins=(SHOP, "http://127.0.0.1:3000")) as client:
        yield client


def said(answer: Answer) -> dict[str, str]:
    """The headers of the CORS protocol."""
    return {name: value for name, value in answer.headers.items() if name.startswith("Access-Control-")}


async def test_every_kind_of_answer_can_be_read_by_an_allowed_origin_and_by_no_other(shared: GatewayClient) -> None:
    """JSON, a created account, pages, problems of every maker, 204, streams: each says so, and caches are told."""
    product = await shared.product(1)
    asked = [
        ("GET", "/api/products", 200),
        ("GET", f"/api/products/{product}", 200),
        ("HEAD", "/health/live", 200),
        ("GET", "/", 200),
        ("GET", "/metrics", 200),
        ("GET", "/nothing", 404),
        ("GET", "/api/orders", 401),
        ("DELETE", "/api/orders", 405),
        ("OPTIONS", "/api/orders", 405),
        ("GET", f"/sse/stock/{product}", 200),
    ]
    for method, path, status in asked:
        for origin in (SHOP, ELSEWHERE, "null", None):
            headers = {} if origin is None else {"Origin": origin}
            async with shared.session.request(method, shared.url + path, headers=headers) as response:
                assert response.status == status, path
                answer = Answer(response.status, b"", response.headers.copy())
            assert "Origin" in answer.headers["Vary"], path
            if origin == SHOP:
                assert answer.headers["Access-Control-Allow-Origin"] == SHOP, path
                assert answer.headers["Access-Control-Allow-Credentials"] == "true"
                assert "Location" in answer.headers["Access-Control-Expose-Headers"]
                assert "X-Request-Id" in answer.headers["Access-Control-Expose-Headers"]
            else:
                assert said(answer) == {}, (path, origin)


async def test_a_preflight_is_answered_with_the_methods_of_its_route(shared: GatewayClient) -> None:
    """204 for an allowed origin; any other OPTIONS is what it was, 405 with `Allow`."""
    for path, methods in (
        ("/api/order/buy-flash", "POST"),
        ("/api/orders", "GET, HEAD"),
        ("/sse/stock/1", "GET"),
        ("/api/ops/sales/1", "GET, HEAD, POST"),
    ):
        answer = await shared.ask("OPTIONS", path, headers={"Origin": SHOP, **ASKING})
        assert (answer.status, answer.body) == (204, b"")
        assert answer.headers["Access-Control-Allow-Origin"] == SHOP
        assert answer.headers["Access-Control-Allow-Methods"] == methods
        allowed = answer.headers["Access-Control-Allow-Headers"].lower().split(", ")
        assert {"authorization", "content-type", "idempotency-key", "last-event-id", "x-request-id"} <= set(allowed)
        assert {"Origin", "Access-Control-Request-Method"} <= set(answer.headers["Vary"].split(", "))
    for headers in ({"Origin": ELSEWHERE, **ASKING}, ASKING, {"Origin": SHOP}):
        answer = await shared.ask("OPTIONS", "/api/orders", headers=headers)
        assert answer.is_problem(405, "method_not_allowed")
        assert answer.headers["Allow"] == "GET, HEAD"
        assert "Access-Control-Allow-Methods" not in answer.headers
    assert (await shared.ask("OPTIONS", "/nothing", headers={"Origin": SHOP, **ASKING})).is_problem(404, "not_found")


async def test_everybody_may_be_allowed_but_then_without_credentials(settings: SigningSettings) -> None:
    async with gateway_on(settings, cors_origins=("*",)) as gateway:
        for method, headers in ("GET", {"Origin": ELSEWHERE}), ("OPTIONS", {"Origin": ELSEWHERE, **ASKING}):
            answer = await gateway.ask(method, "/api/orders", headers=headers)
            assert answer.headers["Access-Control-Allow-Origin"] == "*"
            assert "Access-Control-Allow-Credentials" not in answer.headers


async def test_unless_it_is_configured_no_other_origin_learns_anything(gateway: GatewayClient) -> None:
    for method in ("GET", "OPTIONS"):
        answer = await gateway.ask(method, "/api/orders", headers={"Origin": SHOP, **ASKING})
        assert said(answer) == {}
        assert "Vary" not in answer.headers


@pytest.mark.parametrize(
    "origins", ["shop.example", "https://shop.example/", "https://Shop.example", "*,https://a.example"]
)
def test_what_no_browser_sends_as_an_origin_is_no_setting(origins: str) -> None:
    """It would be compared with every request, and never match."""
    with pytest.raises(ValidationError):
        Settings.model_validate({"cors_origins": origins})
    fine = Settings.model_validate({"cors_origins": "https://shop.example, http://[::1]:3000"})
    assert fine.cors_origins == ("https://shop.example", "http://[::1]:3000")
