"""What every `PaymentProvider` promises, asked of the fake and of the HTTP client with the real gateway process."""

import asyncio
import re
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

import pytest
import pytest_asyncio
import structlog

from sale.payments.provider import (
    ANSWER_MAX_BYTES,
    RETRY_AFTER_MAX_S,
    Captured,
    ChargeOutcome,
    Declined,
    HttpPaymentProvider,
    NotProcessed,
    PaymentProvider,
    Unknown,
)
from tests.fake_provider import FakePaymentProvider

from .conftest import GatewayProcess, free_port

pytestmark = pytest.mark.timeout(60)

TIMEOUT_S = 2.0
ORDER, CENTS, CURRENCY = "01990000-0000-7000-8000-000000000001", 99_999, "USD"


class World(Protocol):
    """A provider and the power over what happens to the next attempt."""

    provider: PaymentProvider

    async def next_is(self, order: str, fate: str) -> None: ...

    def captures(self, order: str) -> list[str]: ...


class FakeWorld:
    def __init__(self) -> None:
        self.fake = FakePaymentProvider()
        self.provider: PaymentProvider = self.fake

    async def next_is(self, order: str, fate: str) -> None:
        if fate == "reset_after_capture":
            self.fake.decide(order, CENTS, CURRENCY)
        outcomes: dict[str, list[ChargeOutcome]] = {
            "answered": [],
            "declined": [Declined("card_declined")],
            "hang": [Unknown("timeout")],
            "unavailable": [Unknown("status 503")],
            "rate_limited": [NotProcessed(1.0, reached=True)],
            "reset_after_capture": [Unknown("reset")],
            "dead": [NotProcessed(None, reached=False)],
        }
        self.fake.will(order, outcomes[fate])

    def captures(self, order: str) -> list[str]:
        return [order_id for order_id, _, _ in self.fake.captures if order_id.startswith(order)]


class RealWorld:
    def __init__(self, gateway: GatewayProcess, provider: PaymentProvider) -> None:
        self.gateway = gateway
        self.provider = provider
        self._dead = False

    async def next_is(self, order: str, fate: str) -> None:
        if self._dead:
            self.gateway.start()
        self._dead = fate == "dead"
        if self._dead:
            self.gateway.end(signal.SIGKILL)
            await asyncio.sleep(0.1)  # let the client see its idle connections end; one in use would be unknown
        else:
            self.gateway.weather(**({} if fate == "answered" else {fate: 1}))

    def captures(self, order: str) -> list[str]:
        return self.gateway.captures(order)


@pytest_asyncio.fixture(params=["fake", "real"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    if request.param == "fake":
        yield FakeWorld()
        return
    gateway: GatewayProcess = request.getfixturevalue("gateway")
    async with HttpPaymentProvider(gateway.url, TIMEOUT_S) as provider:
        yield RealWorld(gateway, provider)


def charge(world: World, order: str, cents: int = CENTS) -> asyncio.Task[ChargeOutcome]:
    return asyncio.ensure_future(world.provider.charge(order, cents, CURRENCY))


async def test_a_captured_order_stays_captured_under_the_same_charge_id(world: World, order: str) -> None:
    await world.next_is(order, "answered")
    first = await charge(world, order)
    assert isinstance(first, Captured)
    assert await charge(world, order) == first
    assert world.captures(order) == [order]


async def test_a_declined_order_stays_declined_in_better_weather(world: World, order: str) -> None:
    await world.next_is(order, "declined")
    assert await charge(world, order) == Declined("card_declined")
    await world.next_is(order, "answered")
    assert await charge(world, order) == Declined("card_declined")
    assert world.captures(order) == []


async def test_a_charge_whose_answer_is_lost_is_unknown_and_found_captured_when_asked_again(
    world: World, order: str
) -> None:
    await world.next_is(order, "reset_after_capture")
    assert isinstance(await charge(world, order), Unknown)
    await world.next_is(order, "answered")
    assert isinstance(await charge(world, order), Captured)
    assert world.captures(order) == [order]


@pytest.mark.parametrize("fate", ["hang", "unavailable"])
async def test_no_definite_answer_is_unknown_and_can_be_asked_again(world: World, order: str, fate: str) -> None:
    await world.next_is(order, fate)
    assert isinstance(await charge(world, order), Unknown)
    await world.next_is(order, "answered")
    assert isinstance(await charge(world, order), Captured)
    assert world.captures(order) == [order]


async def test_a_rate_limited_attempt_was_never_sent_and_carries_the_wait(world: World, order: str) -> None:
    await world.next_is(order, "rate_limited")
    assert await charge(world, order) == NotProcessed(1.0, reached=True)
    assert world.captures(order) == []


async def test_a_dead_provider_was_never_sent_anything_and_lives_on_with_its_memory(world: World, order: str) -> None:
    await world.next_is(order, "answered")
    before = await charge(world, order)
    await world.next_is(order, "dead")
    assert await charge(world, order) == NotProcessed(None, reached=False)
    await world.next_is(order, "answered")
    assert await charge(world, order) == before
    assert world.captures(order) == [order]


async def test_another_amount_under_the_same_order_is_never_taken_for_an_answer(world: World, order: str) -> None:
    await world.next_is(order, "answered")
    assert isinstance(await charge(world, order), Captured)
    assert isinstance(await charge(world, order, cents=1), Unknown)
    assert world.captures(order) == [order]


@pytest.mark.parametrize("cents", [100_000_000_000, 2**53])
async def test_the_largest_amounts_are_charged_like_any_other(world: World, order: str, cents: int) -> None:
    outcome = await world.provider.charge(order, cents, CURRENCY)
    assert isinstance(outcome, Captured)
    assert await world.provider.charge(order, cents, CURRENCY) == outcome


async def test_fifty_charges_of_one_order_at_once_take_the_money_once(world: World, order: str) -> None:
    await world.next_is(order, "answered")
    outcomes = await asyncio.gather(*(charge(world, order) for _ in range(50)))
    assert len(set(outcomes)) == 1
    assert isinstance(outcomes[0], Captured)
    assert world.captures(order) == [order]


async def test_many_orders_at_once_are_each_charged_once(world: World, order: str) -> None:
    await world.next_is(order, "answered")
    orders = [f"{order}-{n}" for n in range(300)]
    outcomes = await asyncio.gather(*(charge(world, each) for each in orders))
    assert all(isinstance(outcome, Captured) for outcome in outcomes)
    assert sorted(world.captures(order)) == sorted(orders)


# What a provider, or something in its place, may send instead of an answer.


def http(status: str, body: bytes = b"", *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def receipt(order_id: str = ORDER, amount: str = '"999.99"', charge_id: str = '"ch_1"') -> bytes:
    return f'{{"chargeId":{charge_id},"orderId":"{order_id}","amount":{amount}}}'.encode()


@asynccontextmanager
async def client_of(answer: bytes) -> AsyncIterator[tuple[PaymentProvider, list[bytes]]]:
    """A client whose provider sends `answer` to whatever it is asked, then closes; and what it was asked."""
    questions: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        questions.append(await reader.readuntil(b"}"))
        writer.write(answer)
        if answer:
            await writer.drain()
        writer.close()

    port = free_port()
    async with (
        await asyncio.start_server(serve, "127.0.0.1", port),
        HttpPaymentProvider(f"http://127.0.0.1:{port}", TIMEOUT_S) as provider,
    ):
        yield provider, questions


HUGE = ANSWER_MAX_BYTES + 1
NONSENSE = {
    "nothing": b"",
    "not http": b"SSH-2.0-OpenSSH_9.9\r\n",
    "half an answer": http("200 OK", receipt())[:-5],
    "another order": http("200 OK", receipt(order_id="someone-else")),
    "another amount": http("200 OK", receipt(amount='"9.99"')),
    "the amount in cents": http("200 OK", receipt(amount="99999")),
    "a longer amount": http("200 OK", receipt(amount='"999.990000000000000000000000000001"')),
    "amount nan": http("200 OK", receipt(amount='"nan"')),
    "amount 1e400": http("200 OK", receipt(amount="1e400")),
    "amount 1e999999999": http("200 OK", receipt(amount="1e999999999")),
    "amount true": http("200 OK", receipt(amount="true")),
    "amount a list": http("200 OK", receipt(amount="[999.99]")),
    "amount in other digits": http("200 OK", receipt(amount='"\u0669\u0669\u0669.99"')),
    "amount null": http("200 OK", receipt(amount="null")),
    "charge id empty": http("200 OK", receipt(charge_id='""')),
    "charge id a number": http("200 OK", receipt(charge_id="7")),
    "charge id with nul": http("200 OK", receipt(charge_id='"ch_\\u0000"')),
    "charge id with a lone surrogate": http("200 OK", receipt(charge_id='"ch_\\ud800"')),
    "charge id with a control": http("200 OK", receipt(charge_id='"ch_\\u001b[2J"')),
    "charge id with a bidi override": http("200 OK", receipt(charge_id='"ch_\\u202e1"')),
    "charge id too long": http("200 OK", receipt(charge_id=f'"{"c" * 256}"')),
    "empty": http("200 OK"),
    "html": http("200 OK", b"<html>Welcome to the hotel wifi</html>"),
    "a list": http("200 OK", b"[" + receipt() + b"]"),
    "deep json": http("200 OK", b'{"chargeId":' + b"[" * 30_000),
    "invalid utf-8": http("200 OK", receipt(charge_id='"\u00ff"').decode().encode("latin-1")),
    "huge by length": http("200 OK", receipt() + b" " * HUGE),
    "huge in chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n"
    % (HUGE, b" " * HUGE),
    "huge header": http("200 OK", receipt(), "X: " + "x" * HUGE),
    "length a lie": b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n" + receipt(),
    "compressed": http("200 OK", b"\x1f\x8b\x08\x00nonsense", "Content-Encoding: gzip"),
    "created": http("201 Created", receipt()),
    "redirect": http("302 Found", b"", "Location: http://127.0.0.1:1/"),
    "temporary redirect": http("307 Temporary Redirect", receipt(), "Location: /charges"),
    "bad request": http("400 Bad Request"),
    "unauthorized": http("401 Unauthorized"),
    "not found": http("404 Not Found"),
    "conflict": http("409 Conflict", receipt()),
    "unprocessable": http("422 Unprocessable Content"),
    "error": http("500 Internal Server Error", receipt()),
    "declined for another order": http("402 Payment Required", b'{"orderId":"someone-else"}'),
    "declined hugely": http("402 Payment Required", b" " * HUGE),
    "status 999": http("999 Odd", receipt()),
    "status 20": http("20 Odd", receipt()),
}


@pytest.mark.parametrize("answer", NONSENSE.values(), ids=NONSENSE.keys())
async def test_nonsense_is_unknown_and_asked_once(answer: bytes) -> None:
    async with client_of(answer) as (provider, questions):
        assert isinstance(await provider.charge(ORDER, CENTS, CURRENCY), Unknown)
        assert len(questions) == 1, "one attempt is one request: no redirect followed, nothing repeated inside"


@pytest.mark.parametrize("amount", ['"999.99"', "999.99"])
async def test_an_honest_receipt_is_captured(amount: str) -> None:
    async with client_of(http("200 OK", receipt(amount=amount))) as (provider, _):
        assert await provider.charge(ORDER, CENTS, CURRENCY) == Captured("ch_1")


@pytest.mark.parametrize("body", [b"", b"no", b'{"error":"declined"}', b'{"orderId":"%s"}' % ORDER.encode()])
async def test_a_402_is_a_decline_whatever_it_says_unless_it_names_another_order(body: bytes) -> None:
    async with client_of(http("402 Payment Required", body)) as (provider, _):
        assert await provider.charge(ORDER, CENTS, CURRENCY) == Declined("declined")


@pytest.mark.parametrize("cents", [100_000_000_000, 9_007_199_254_740_991, 2**53])
@pytest.mark.parametrize("quote", ['"', ""], ids=["text", "number"])
async def test_a_receipt_over_any_amount_that_can_be_charged_is_read_to_the_cent(cents: int, quote: str) -> None:
    """A thousand million and more: unreadable, it was charged and never confirmed."""
    amount = f"{quote}{cents // 100}.{cents % 100:02d}{quote}"
    async with client_of(http("200 OK", receipt(amount=amount))) as (provider, _):
        assert await provider.charge(ORDER, cents, CURRENCY) == Captured("ch_1")
    async with client_of(http("200 OK", receipt(amount=amount))) as (provider, _):
        assert await provider.charge(ORDER, cents - 1, CURRENCY) == Unknown("receipt over another amount")


@pytest.mark.parametrize("amount", ["1E+9", "1.0e9", "1000000000", '"1000000000"', '"1000000000.0"'])
async def test_a_receipt_may_spell_its_amount_as_json_does(amount: str) -> None:
    async with client_of(http("200 OK", receipt(amount=amount))) as (provider, _):
        assert await provider.charge(ORDER, 100_000_000_000, CURRENCY) == Captured("ch_1")


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (rb"no\u0000funds", "no\ufffdfunds"),
        (rb"no\r\nfunds", "no\ufffd\ufffdfunds"),
        (b"x" * 10_000, "x" * 100),
        (b"", "declined"),
        (rb"\ud800", "declined"),
    ],
)
async def test_the_reason_of_a_decline_can_be_stored_whatever_was_said(said: bytes, kept: str) -> None:
    """The status is definite; the text is for people."""
    async with client_of(http("402 Payment Required", b'{"error":"%s"}' % said)) as (provider, _):
        assert await provider.charge(ORDER, CENTS, CURRENCY) == Declined(kept)


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("999999", RETRY_AFTER_MAX_S),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 0.0),
        ("Fri, 31 Dec 2199 23:59:59 GMT", RETRY_AFTER_MAX_S),
        ("-1", None),
        ("soon", None),
        ("", None),
    ],
)
async def test_retry_after_is_heard_within_bounds(said: str, heard: float | None) -> None:
    async with client_of(http("429 Too Many Requests", b"", f"Retry-After: {said}")) as (provider, _):
        assert await provider.charge(ORDER, CENTS, CURRENCY) == NotProcessed(heard, reached=True)


async def test_a_connection_that_is_never_accepted_was_never_sent_anything() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        async with HttpPaymentProvider(url) as provider:
            outcomes = await asyncio.gather(*(provider.charge(ORDER, CENTS, CURRENCY) for _ in range(8)))
    assert NotProcessed(None, reached=False) in outcomes
    assert Unknown("timeout") in outcomes, "the few that the kernel took were sent"


async def test_an_attempt_is_given_up_in_time_however_slowly_the_answer_drips() -> None:
    async def drip(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for byte in http("200 OK", receipt()):
            writer.write(bytes([byte]))
            await asyncio.sleep(TIMEOUT_S / 5)

    loop = asyncio.get_running_loop()
    server = await asyncio.start_server(drip, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with HttpPaymentProvider(url, TIMEOUT_S) as provider:
        began = loop.time()
        assert await provider.charge(ORDER, CENTS, CURRENCY) == Unknown("timeout")
        assert loop.time() - began < 2 * TIMEOUT_S
    server.close()


async def test_why_a_provider_is_not_reached_is_told_once_not_once_an_order() -> None:
    """TLS asked of something that speaks none, and a port where nobody listens."""
    port = free_port()
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", port):
        for url, reason in (
            (f"https://127.0.0.1:{port}", "SSL|Connection"),
            (f"http://127.0.0.1:{free_port()}", "111"),
        ):
            async with HttpPaymentProvider(url, TIMEOUT_S) as provider:
                with structlog.testing.capture_logs() as lines:
                    for _ in range(3):
                        assert await provider.charge(ORDER, CENTS, CURRENCY) == NotProcessed(None, reached=False)
            [line] = lines
            assert line["event"] == "the payment provider is not reached"
            assert re.search(reason, line["reason"])
