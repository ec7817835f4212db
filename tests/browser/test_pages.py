"""The gateway's pages and streams in a real browser: they work, they ask nobody else for anything, a phone can show them."""

import asyncio
from urllib.parse import urlsplit

from tests.integration.gateway_fixtures import GatewayClient, gateway, settings

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
