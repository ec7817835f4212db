"""nginx in front of gateways that fail in every way: what a client is told, what is tried again, and who is cut off."""

import asyncio
import re
import time
from contextlib import AsyncExitStack
from pathlib import Path

import orjson
import pytest

from gateway.http.problems import KINDS
from infra.supervision.ports import free_ports
from tests.sockets import fall_silent

from .nginx_fixtures import (
    TEMPLATE,
    FakeGateway,
    Raw,
    after,
    after_a_while,
    ask,
    drop,
    fake_gateways,
    hang,
    nginx_binary,
    nginx_on,
    send,
)

__all__ = ["nginx_binary"]

BUY = "/api/order/buy-flash"
BODY = b'{"productId":1}'
SLACK_S = 3.0  # of a busy machine


async def test_a_dead_gateway_is_passed_by(nginx_binary: Path, tmp_path: Path) -> None:
    """Nothing was sent to a port that refuses, so purchases too go to the next gateway; the client notices nothing."""
    [dead] = free_ports(1)
    async with fake_gateways(send(202)) as [alive], nginx_on(nginx_binary, tmp_path, [dead, alive.port]) as nginx:
        statuses = [(await ask(nginx.port, "POST", BUY, body=BODY)).status for _ in range(20)]
        assert statuses == [202] * 20
        assert len(alive.heads) == 20


async def test_without_any_gateway_the_answer_is_503_at_once(nginx_binary: Path, tmp_path: Path) -> None:
    """Nothing was reserved: safe to repeat, and said so, for reading, buying and streams alike."""
    async with nginx_on(nginx_binary, tmp_path, free_ports(2)) as nginx:
        started = time.monotonic()
        for _ in range(3):  # refused, and then known to be down
            for method, path in (("POST", BUY), ("GET", "/api/products/1"), ("GET", "/sse/stock/1")):
                assert (await ask(nginx.port, method, path)).is_problem(503, "unavailable")
        assert (await ask(nginx.port, "HEAD", "/health")).status == 503
        assert time.monotonic() - started < 2.0


async def test_a_purchase_whose_gateway_died_over_it_is_unknown_and_not_sent_again(
    nginx_binary: Path, tmp_path: Path
) -> None:
    """It may have been carried out: 504 outcome_unknown, and no second gateway hears of it. Reading is simply repeated."""
    async with (
        fake_gateways(drop, drop) as fakes,
        nginx_on(nginx_binary, tmp_path, [fake.port for fake in fakes]) as nginx,
    ):
        assert (await ask(nginx.port, "POST", BUY, body=BODY)).is_problem(504, "outcome_unknown")
        assert _requests(fakes) == 1
        assert (await ask(nginx.port, "GET", "/api/products")).is_problem(503, "unavailable")
        assert _requests(fakes) == 3


async def test_a_gateway_that_dies_on_an_open_connection_leaves_a_purchase_unknown(
    nginx_binary: Path, tmp_path: Path
) -> None:
    """nginx keeps connections to gateways open; a request on one that was used before is just as unknown."""
    async with fake_gateways(after(3, drop)) as [fake], nginx_on(nginx_binary, tmp_path, [fake.port]) as nginx:
        for _ in range(3):
            assert (await ask(nginx.port, "POST", BUY, body=BODY)).status == 200
        assert (await ask(nginx.port, "POST", BUY, body=BODY)).is_problem(504, "outcome_unknown")
        assert len(fake.heads) == 4


async def test_reading_goes_to_another_gateway_when_one_dies_over_it(nginx_binary: Path, tmp_path: Path) -> None:
    async with (
        fake_gateways(drop, send()) as fakes,
        nginx_on(nginx_binary, tmp_path, [fake.port for fake in fakes]) as nginx,
    ):
        assert [(await ask(nginx.port, "GET", "/api/products")).status for _ in range(6)] == [200] * 6


async def test_a_gateway_that_hangs_is_given_up_within_5_seconds(nginx_binary: Path, tmp_path: Path) -> None:
    """A purchase is unknown then; reading, when all of them hang, is safe to repeat."""
    async with (
        fake_gateways(hang, hang) as fakes,
        nginx_on(nginx_binary, tmp_path, [fake.port for fake in fakes]) as nginx,
    ):
        started = time.monotonic()
        bought, read = await asyncio.gather(
            ask(nginx.port, "POST", BUY, body=BODY), ask(nginx.port, "GET", "/api/products")
        )
        assert bought.is_problem(504, "outcome_unknown")
        assert read.is_problem(503, "unavailable")
        assert time.monotonic() - started < 5.0
        assert sum(head.startswith("POST") for fake in fakes for head in fake.heads) == 1


async def test_reading_is_answered_by_another_gateway_when_one_hangs(nginx_binary: Path, tmp_path: Path) -> None:
    async with (
        fake_gateways(hang, send()) as fakes,
        nginx_on(nginx_binary, tmp_path, [fake.port for fake in fakes]) as nginx,
    ):
        replies = await asyncio.gather(*(ask(nginx.port, "GET", "/api/products") for _ in range(6)))
        assert {reply.status for reply in replies} == {200}


async def test_a_gateway_is_asked_only_when_the_whole_body_has_come(nginx_binary: Path, tmp_path: Path) -> None:
    """Whoever sends a body slowly, or never, takes nothing from a gateway; buyers beside him are served."""
    start = f"POST {BUY} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n\r\n{{".encode()
    async with (
        fake_gateways(send(202)) as [fake],
        nginx_on(nginx_binary, tmp_path, [fake.port]) as nginx,
        AsyncExitStack() as stack,
    ):
        slow = [await stack.enter_async_context(Raw.to(nginx.port)) for _ in range(20)]
        for raw in slow:
            raw.writer.write(start)
        assert [(await ask(nginx.port, "POST", BUY, body=BODY)).status for _ in range(5)] == [202] * 5
        assert len(fake.heads) == 5, "asked for a body that has not come"
        slow[0].writer.write(BODY[1:])
        assert (await slow[0].reply("POST")).status == 202


async def test_what_a_gateway_refuses_passes_as_it_is(nginx_binary: Path, tmp_path: Path) -> None:
    """Only what nginx itself has to say is put in its own words: a gateway's 504 carries an order id."""
    for status, code in ((503, "busy"), (504, "outcome_unknown"), (429, "rate_limited"), (413, "too_large")):
        body = orjson.dumps({"code": code, "orderId": "x"})
        answer = send(status, body, "application/problem+json", "Retry-After: 7\r\nLocation: /api/order/x/status\r\n")
        async with (
            fake_gateways(answer, answer) as fakes,
            nginx_on(nginx_binary, tmp_path, [fake.port for fake in fakes]) as nginx,
        ):
            reply = await ask(nginx.port, "POST", BUY, body=BODY)
            assert (reply.status, reply.body, reply.headers["retry-after"]) == (status, body, "7")
            assert reply.headers["server"] == "thrones"
            assert _requests(fakes) == 1


async def test_the_gateway_with_fewest_requests_gets_the_next(nginx_binary: Path, tmp_path: Path) -> None:
    """least_conn: one that is slow is not given every second request."""
    slow, quick = after_a_while(1.0), send()
    async with (
        fake_gateways(slow, quick) as [one, other],
        nginx_on(nginx_binary, tmp_path, [one.port, other.port]) as nginx,
    ):
        for _ in range(5):
            await asyncio.gather(*(_ask_soon(nginx.port, 0.01 * n) for n in range(8)))
        assert len(one.heads) + len(other.heads) == 40
        assert len(one.heads) <= 15


async def _ask_soon(port: int, delay_s: float) -> None:
    await asyncio.sleep(delay_s)
    assert (await ask(port, "GET", "/api/products")).status == 200


async def test_metrics_are_closed_however_they_are_spelt(nginx_binary: Path, tmp_path: Path) -> None:
    spellings = (
        "/metrics",
        "/metrics/",
        "//metrics",
        "/metrics?x=1",
        "/%6detrics",
        "/api/../metrics",
        "http://x/metrics",
    )
    async with fake_gateways(send()) as [fake], nginx_on(nginx_binary, tmp_path, [fake.port]) as nginx:
        for spelling in spellings:
            assert (await ask(nginx.port, "GET", spelling)).is_problem(403, "forbidden"), spelling
        assert fake.heads == []


async def test_the_forwarded_address_is_the_one_nginx_saw(nginx_binary: Path, tmp_path: Path) -> None:
    """Whatever a client writes about itself is not passed on; its keys and tokens are."""
    claims = "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 7.7.7.7\r\nForwarded: for=6.6.6.6\r\n"
    async with fake_gateways(send()) as [fake], nginx_on(nginx_binary, tmp_path, [fake.port]) as nginx:
        await ask(nginx.port, "POST", BUY, claims + "Idempotency-Key: k\r\nAuthorization: Bearer t\r\n", BODY)
        [head] = fake.heads
        assert re.findall(r"(?im)^(?:x-)?forwarded(?:-for)?: (.*)\r$", head) == ["127.0.0.1"]
        assert "Idempotency-Key: k\r\n" in head
        assert "Authorization: Bearer t\r\n" in head


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        ("GET / HTTP/1.1\r\nHost: x\r\nA: " + "a" * 9_000 + "\r\n\r\n", 431, "header_too_large"),
        ("GET /" + "a" * 9_000 + " HTTP/1.1\r\nHost: x\r\n\r\n", 431, "header_too_large"),
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 16385\r\n\r\n", 413, "too_large"),
        ("GET / HTTP/1.1\r\n\r\n", 400, "invalid_request"),
        ("HELLO\r\n\r\n", 400, "invalid_request"),
        ("GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n", 400, "invalid_request"),
        (
            "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            "invalid_request",
        ),
        ("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 400, "invalid_request"),
        ("TRACE / HTTP/1.1\r\nHost: x\r\n\r\n", 405, "method_not_allowed"),
        ("GET /_refused/not_found HTTP/1.1\r\nHost: x\r\n\r\n", 404, "not_found"),
    ],
)
async def test_requests_that_are_none_are_refused_here(
    nginx_binary: Path, tmp_path: Path, request_: str, status: int, code: str
) -> None:
    """The gateways never see them, and the words are the gateways'."""
    async with fake_gateways(send()) as [fake], nginx_on(nginx_binary, tmp_path, [fake.port]) as nginx:
        async with Raw.to(nginx.port) as raw:
            raw.writer.write(request_.encode())
            assert (await raw.reply()).is_problem(status, code)
        assert fake.heads == []


async def test_a_request_s_id_is_handed_on_where_it_is_sane_and_made_where_it_is_not(
    nginx_binary: Path, tmp_path: Path
) -> None:
    """Gateways and nginx's own refusals know the request by one id."""
    async with fake_gateways(send()) as [fake], nginx_on(nginx_binary, tmp_path, [fake.port]) as nginx:
        for given, kept in ("own.Id-1_", "own.Id-1_"), ('bad"id', "[0-9a-f]{32}"), ("a" * 129, "[0-9a-f]{32}"):
            async with Raw.to(nginx.port) as raw:
                raw.writer.write(f"GET / HTTP/1.1\r\nHost: x\r\nX-Request-Id: {given}\r\n\r\n".encode())
                await raw.reply()
            [told] = re.findall(r"x-request-id: (\S+)", fake.heads[-1].lower())
            assert re.fullmatch(kept.lower(), told), told
            async with Raw.to(nginx.port) as raw:
                raw.writer.write(f"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Request-Id: {given}\r\n\r\n".encode())
                refused = await raw.reply()
            assert refused.is_problem(403, "forbidden")
            assert re.fullmatch(kept, refused.headers["x-request-id"])


def test_what_nginx_says_are_the_gateways_own_words() -> None:
    """Code, status, title and whether to repeat are one table: gateway/http/problems.py."""
    said = [orjson.loads(text) for text in re.findall(r"return \d+ '(.*)';", TEMPLATE.read_text())]
    assert len(said) >= 8
    for problem in said:
        kind = KINDS[problem["code"]]
        assert (problem["status"], problem["title"], problem["retryable"]) == (kind.status, kind.title, kind.retryable)


async def test_events_pass_one_by_one_as_they_come(nginx_binary: Path, tmp_path: Path) -> None:
    """Nothing is gathered up: the second event is sent only when the client has the first."""
    got = [asyncio.Event() for _ in range(3)]

    async def stream(_fake: FakeGateway, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for n in range(3):
            writer.write(b"9\r\ndata: %d\n\n\r\n" % n)
            await got[n].wait()
        return False

    async with (
        fake_gateways(send(), stream) as [gateway, streams],
        nginx_on(nginx_binary, tmp_path, [gateway.port], [streams.port]) as nginx,
        Raw.to(nginx.port) as raw,
        asyncio.timeout(5),
    ):
        raw.writer.write(b"GET /sse/stock/1 HTTP/1.1\r\nHost: x\r\n\r\n")
        for n in range(3):
            await raw.reader.readuntil(b"data: %d\n\n" % n)
            got[n].set()
        assert gateway.heads == []


async def test_one_address_has_only_so_many_streams(nginx_binary: Path, tmp_path: Path) -> None:
    async with (
        fake_gateways(hang) as [fake],
        nginx_on(nginx_binary, tmp_path, [fake.port], streams_per_address=3) as nginx,
    ):
        waiting = [asyncio.create_task(ask(nginx.port, "GET", "/sse/stock/1")) for _ in range(3)]
        async with asyncio.timeout(5):
            while len(fake.heads) < 3:  # noqa: ASYNC110 - nginx tells nobody
                await asyncio.sleep(0.01)
        assert (await ask(nginx.port, "GET", "/sse/stock/1")).is_problem(429, "rate_limited")
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_ticket_is_in_no_log(nginx_binary: Path, tmp_path: Path) -> None:
    """Failures are logged by path; what is behind the question mark is not."""
    async with (
        fake_gateways(drop) as [fake],
        nginx_on(nginx_binary, tmp_path, [fake.port]) as nginx,
    ):
        for path in ("/sse/order/abc", "/api/order/abc/status", "/nowhere"):
            await ask(nginx.port, "GET", f"{path}?ticket=secret-ticket")
        await ask(nginx.port, "POST", f"{BUY}?ticket=secret-ticket", "Authorization: Bearer secret-token\r\n", BODY)
    lines = [orjson.loads(line) for line in nginx.output.splitlines()]
    assert [line["path"] for line in lines] == ["/sse/order/abc", "/api/order/abc/status", "/nowhere", BUY]
    assert "secret" not in nginx.output


async def test_whoever_dawdles_is_cut_within_10_seconds(nginx_binary: Path, tmp_path: Path) -> None:
    """Slow headers (a byte a second), a body that stops, and a reader that stops."""

    async def flood(_fake: FakeGateway, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        while True:
            writer.write(b"data: 0123456789\n\n" * 500)
            await writer.drain()

    async with (
        fake_gateways(hang, flood) as [gateway, streams],
        nginx_on(nginx_binary, tmp_path, [gateway.port], [streams.port]) as nginx,
        asyncio.timeout(10.5),
    ):
        await asyncio.gather(_slow_headers(nginx.port), _stopped_body(nginx.port), _stopped_reader(nginx.port, streams))


async def test_a_reader_that_has_vanished_from_a_quiet_stream_is_cut_within_10_seconds(
    nginx_binary: Path, tmp_path: Path
) -> None:
    """Nothing is sent and nothing acknowledged: nginx asks, gives the client up and lets go of the stream behind it."""

    async def quiet(_fake: FakeGateway, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        return True  # it listens on, and so learns the end

    async with (
        fake_gateways(quiet) as [streams],
        nginx_on(nginx_binary, tmp_path, [streams.port]) as nginx,
        Raw.to(nginx.port) as raw,
        asyncio.timeout(10 + SLACK_S),
    ):
        raw.writer.write(b"GET /sse/stock/1 HTTP/1.1\r\nHost: x\r\n\r\n")
        await raw.reader.readuntil(b"data: 1\n\n")
        fall_silent(raw.writer.get_extra_info("socket"))
        while not streams.ended:  # noqa: ASYNC110 - the fake sets no event
            await asyncio.sleep(0.05)


async def _slow_headers(port: int) -> None:
    async with Raw.to(port) as raw:
        ended = asyncio.create_task(raw.closed())
        for byte in b"GET /api/products HTTP/1.1\r\nHost: x\r\nA: aaaaaaaaaaaaaa":
            raw.writer.write(bytes([byte]))
            done, _ = await asyncio.wait({ended}, timeout=1.0)
            if done:
                return
        raise AssertionError("it was let go on")


async def _stopped_body(port: int) -> None:
    async with Raw.to(port) as raw:
        raw.writer.write(f"POST {BUY} HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n\r\n{{".encode())
        await raw.closed()


async def _stopped_reader(port: int, streams: FakeGateway) -> None:
    """The client reads nothing more; the fake's connection ends when nginx has given the client up."""
    async with Raw.to(port) as raw:
        raw.writer.write(b"GET /sse/stock/1 HTTP/1.1\r\nHost: x\r\n\r\n")
        await raw.reader.readuntil(b"\r\n\r\n")
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]  # the streams' type hides the transport's kind
        while not streams.ended:  # noqa: ASYNC110 - the fake sets no event
            await asyncio.sleep(0.05)


def _requests(fakes: list[FakeGateway]) -> int:
    return sum(len(fake.heads) for fake in fakes)
