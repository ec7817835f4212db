"""The gateway's pages and streams in a real browser: they work, they ask nobody else for anything, a phone can show them."""

import asyncio
from urllib.parse import urlsplit

import pytest

from infra.settings import SigningSettings
from tests.integration.gateway_fixtures import GatewayClient, gateway, gateway_on, settings

from .conftest import Browser

__all__ = ["gateway", "settings"]

LISTEN = """
window.seen = [];
const source = new EventSource(arguments[0]);
source.addEventListener(arguments[1], event => window.seen.push([event.lastEventId, JSON.parse(event.data)]));
"""
SIDEWAYS = "return document.scrollingElement.scrollWidth - document.documentElement.clientWidth"


def origins(urls: list[str]) -> set[str]:
    return {urlsplit(url).netloc for url in urls}


async def test_the_interface_can_be_read_and_tried_on_its_page_without_anything_from_elsewhere(
    gateway: GatewayClient, browser: Browser
) -> None:
    """Every operation of the document is there; one is opened, another one sent and answered; no error, no other origin."""
    product = await gateway.product(7)
    document = (await gateway.ask("GET", "/openapi.json")).json
    operations = [verb for path in document["paths"].values() for verb in path if verb in ("get", "post")]

    def read_and_try() -> None:
        browser.open(f"{gateway.url}/docs")
        assert len(browser.all(".opblock")) == len(operations)
        buy, one = "[id$=buyFlash]", "[id$=getProduct]"
        browser.click(f"{buy} .opblock-summary-control")
        text = " ".join(element.text for element in browser.all(f"{buy} .opblock-body"))
        for said in ("Idempotency-Key", "productId", "202", "409", "sold_out", "503"):
            assert said in text, said
        browser.click(f"{one} .opblock-summary-control")
        [field] = browser.all(f"{one} .parameters input")
        field.send_keys(str(product))
        browser.click(f"{one} .execute")
        answer = browser.until(
            "return document.querySelector(arguments[0])?.innerText", f"{one} .live-responses-table .response"
        )
        assert answer.startswith("200"), answer
        assert '"stock": 7' in answer
        asked = browser.requested()
        assert f"{gateway.url}/api/products/{product}" in asked
        assert origins(asked) == {urlsplit(gateway.url).netloc}
        assert browser.complaints() == []

    await asyncio.to_thread(read_and_try)


async def test_a_phone_shows_the_interface_without_scrolling_sideways(gateway: GatewayClient, browser: Browser) -> None:
    def read() -> None:
        browser.open(f"{gateway.url}/docs", width=390, height=844, phone=True)
        browser.click("[id$=buyFlash] .opblock-summary-control")
        browser.all("[id$=buyFlash] .opblock-body .responses-table")
        assert browser.run(SIDEWAYS) <= 0
        assert browser.complaints() == []

    await asyncio.to_thread(read)


async def test_a_plain_event_source_hears_nothing_of_the_comments_between_events(
    settings: SigningSettings, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many keep-alives come between two values; it fires for the values alone."""
    monkeypatch.setattr("gateway.watching.stock_stream.KEEP_ALIVE_INTERVAL_S", 0.1)
    async with gateway_on(settings) as gateway:
        product = await gateway.product(9)
        await asyncio.to_thread(browser.open, f"{gateway.url}/docs")
        await asyncio.to_thread(browser.run, LISTEN, f"/sse/stock/{product}", "message")
        assert (await asyncio.to_thread(browser.until, "return window.seen[0]"))[0] == "1.0"
        await asyncio.sleep(1.0)  # ten comments
        await gateway.buy({"productId": product})
        assert (await asyncio.to_thread(browser.until, "return window.seen[1]"))[0] == "1.1"
        assert len(await asyncio.to_thread(browser.run, "return window.seen")) == 2
        await asyncio.to_thread(browser.open, "about:blank")


async def test_the_landing_page_and_a_problem_s_page_are_whole(gateway: GatewayClient, browser: Browser) -> None:
    """Under their policy nothing is refused; a phone shows them without scrolling sideways; the first leads to the interface."""

    def read() -> None:
        for path in ("/problems/sold_out", "/"):
            browser.open(f"{gateway.url}{path}", width=390, height=844, phone=True)
            assert browser.all("h1")[0].text in ("Sold out", "Backend of Thrones")
            assert browser.run(SIDEWAYS) <= 0
        browser.click('a[href="/docs"]')
        browser.all(".opblock")
        assert origins(browser.requested()) == {urlsplit(gateway.url).netloc}
        assert browser.complaints() == []

    await asyncio.to_thread(read)


async def test_a_page_of_an_allowed_origin_buys_and_follows_and_one_of_another_cannot(
    settings: SigningSettings, browser: Browser
) -> None:
    """The browser itself asks before it sends, and lets the page read headers and errors; another origin gets nothing."""
    async with gateway_on(settings) as other, gateway_on(settings, cors_origins=(other.url,)) as gateway:
        product = await gateway.product(1)
        script = """
            window.told = null;
            fetch(arguments[0] + "/api/order/buy-flash", {
              method: "POST",
              headers: {Authorization: arguments[1], "Content-Type": "application/json", "Idempotency-Key": "k"},
              body: JSON.stringify({productId: arguments[2]}),
            }).then(async answer => {
              window.told = [answer.status, answer.headers.get("Location"), answer.headers.get("X-Request-Id"),
                             (await answer.json()).code];
            }).catch(error => { window.told = ["refused"]; });
        """

        async def bought(page: str, at: str) -> list[object]:
            await asyncio.to_thread(browser.open, f"{page}/health/live")  # our own pages' policy lets no script leave
            await asyncio.to_thread(browser.run, script, at, gateway.bearer["Authorization"], product)
            told: list[object] = await asyncio.to_thread(browser.until, "return window.told")
            return told

        status, location, request_id, _ = await bought(other.url, gateway.url)
        assert status == 202
        assert str(location).startswith("/api/order/")
        assert request_id
        gateway.token = gateway.another_user().token
        assert (await bought(other.url, gateway.url))[0::3] == [409, "sold_out"]
        await asyncio.to_thread(browser.run, LISTEN, f"{gateway.url}/sse/stock/{product}", "message")
        assert (await asyncio.to_thread(browser.until, "return window.seen[0]"))[1] == {
            "productId": product,
            "stock": 0,
        }
        assert await bought(gateway.url, other.url) == ["refused"]
        assert await gateway.reserved(product) == (0, 1)
        await asyncio.to_thread(browser.open, "about:blank")


async def test_a_plain_event_source_follows_the_stock_and_with_a_ticket_an_order(
    gateway: GatewayClient, browser: Browser
) -> None:
    """What the reference's users do, three lines of script: no header can be sent, so stock is public and tickets exist."""
    product = await gateway.product(9)
    await asyncio.to_thread(browser.open, f"{gateway.url}/docs")
    await asyncio.to_thread(browser.run, LISTEN, f"/sse/stock/{product}", "message")
    assert await asyncio.to_thread(browser.until, "return window.seen[0]") == [
        "1.0",
        {"productId": product, "stock": 9},
    ]
    order = (await gateway.buy({"productId": product, "quantity": 2})).json["orderId"]
    assert await asyncio.to_thread(browser.until, "return window.seen[1]") == [
        "1.1",
        {"productId": product, "stock": 7},
    ]
    ticket = (await gateway.ask("POST", "/api/auth/ticket", headers=gateway.bearer)).json["ticket"]
    await asyncio.to_thread(browser.run, LISTEN, f"/sse/order/{order}?ticket={ticket}", "status")
    last_id, state = await asyncio.to_thread(browser.until, "return window.seen[0]")
    assert (last_id, state["orderId"], state["status"]) == ("queued", order, "queued")
    assert await asyncio.to_thread(browser.complaints) == []
