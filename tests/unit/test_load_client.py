"""The outside load client: what it reads off the wire, and that it measures from when a request was meant to be sent."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import get_args

import psutil
import pytest
import typer

from bench import buyers, micro, pauses
from bench import load as load_test
from bench.buyers import ModeName
from bench.connections import Connections, NoAnswer, Unreachable
from bench.generator import Generator, load_users
from bench.plan import Mode, Plan, Share, pieces
from bench.tally import Tally, summarise
from infra.supervision.ports import free_ports

ORDER = "01900000-0000-7000-8000-000000000000"
ACCEPTED = json.dumps({"orderId": ORDER}).encode()


def answer(status: int, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


ACCEPTANCE = answer(202, ACCEPTED, f"Location: /api/order/{ORDER}/status")


@asynccontextmanager
async def server(reply: Callable[[int], tuple[float, bytes | None]]) -> AsyncIterator[str]:
    """Answers request n with `reply(n)`: after so many seconds these bytes, or a reset."""
    count = 0
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                delay_s, text = reply(count)
                count += 1
                await asyncio.sleep(delay_s)
                if text is None:
                    return
                writer.write(text)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client has gone, or the test has ended
        finally:
            writer.transport.abort()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving)


def token(user: int) -> str:
    claims = base64.urlsafe_b64encode(json.dumps({"sub": str(user)}).encode()).decode().rstrip("=")
    return f"h.{claims}.s"


async def load(url: str, tmp_path: Path, mode: Mode = "open", **plan: object) -> tuple[Tally, list[dict[str, object]]]:
    tokens, log = tmp_path / "tokens.json", tmp_path / "clients.jsonl"
    tokens.write_text(json.dumps([token(user) for user in range(1, 6)]))
    options = {"seconds": 0.5, "log": str(log), **plan}
    share = Share(plan=Plan(base_url=url, tokens=str(tokens), mode=mode, **options), index=0, run="r")  # type: ignore[arg-type]  # a test's options
    tally = await Generator(share, load_users(tokens, share), time.time()).run()
    return tally, [json.loads(line) for line in log.read_text().splitlines()]


async def test_never_sent_and_never_answered_are_told_apart() -> None:
    nobody = Connections(f"http://127.0.0.1:{free_ports(1)[0]}", 1)
    with pytest.raises(Unreachable):
        await nobody.ask(b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 1.0)
    async with server(lambda _: (0.0, None)) as url:
        with pytest.raises(NoAnswer, match="reset"):
            await Connections(url, 1).ask(b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 1.0)
    async with server(lambda _: (5.0, b"")) as url:
        with pytest.raises(NoAnswer, match="timeout"):
            await Connections(url, 1).ask(b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 0.05)


async def test_a_server_that_stalls_once_is_seen_in_every_request_that_it_kept_waiting(tmp_path: Path) -> None:
    """One connection and one stall of 300 ms: the arrivals behind it waited too, which a client that asks only after an
    answer would not notice (coordinated omission)."""
    async with server(lambda n: (0.3 if n == 5 else 0.0, ACCEPTANCE)) as url:
        tally, _ = await load(url, tmp_path, rate=100, seconds=0.495, connections=1)
        again, _ = await load(url, tmp_path, mode="closed", connections=1, seconds=0.2)
    assert tally.arrivals == 50
    assert sum(1 for ms in tally.accepted_ms if ms > 100) >= 15
    assert sum(1 for ms in again.accepted_ms if ms > 100) <= 1


async def test_the_client_log_has_a_line_an_answer_with_its_outcome(tmp_path: Path) -> None:
    sold_out = answer(409, b'{"code":"sold_out"}')
    lost = answer(504, json.dumps({"code": "outcome_unknown", "orderId": ORDER}).encode())
    replies = [
        ACCEPTANCE,
        sold_out,
        lost,
        None,
        answer(503, b'{"code":"busy"}', "Retry-After: 1"),
        answer(500, b"oops"),
    ]
    async with server(lambda n: (0.0, replies[n])) as url:
        tally, lines = await load(url, tmp_path, rate=10, seconds=0.1 * len(replies) - 0.05, connections=1)
    told = [(line["outcome"], line["status"], line["code"], line["order"]) for line in lines]
    assert told == [
        ("A", 202, "", ORDER),
        ("R", 409, "sold_out", None),
        ("U", 504, "outcome_unknown", ORDER),
        ("U", 0, "reset", None),
        ("R", 503, "busy", None),
        ("U", 500, "", None),
    ]
    assert {(line["user"], line["product"]) for line in lines} == {(user, 1) for user in range(1, 6)}
    assert len({line["key"] for line in lines}) == len(lines)
    assert [text.split(":")[0] for text in tally.bad_answers] == ["an undocumented answer"]
    result = summarise("open", [tally])
    assert (result.accepted, result.unknown, result.refused) == (1, 3, 2)


async def test_a_live_run_shows_its_tally_meanwhile_and_its_process_steps_back(tmp_path: Path) -> None:
    """The first tally with an arrival ends the run: without one it would take a minute."""
    tokens, stop, priorities = tmp_path / "tokens.json", asyncio.Event(), set[int]()
    tokens.write_text(json.dumps([token(1)]))

    def watch(tallies: Sequence[Tally]) -> None:
        if any(tally.arrivals for tally in tallies):
            priorities.update(child.nice() for child in psutil.Process().children())
            stop.set()

    async with server(lambda _: (0.0, ACCEPTANCE)) as url, asyncio.timeout(40):
        plan = Plan(base_url=url, tokens=str(tokens), mode="open", rate=20, seconds=60, live=True, niceness=2)
        [tally] = await buyers.tallies(plan, stop, watch)
    assert stop.is_set()
    assert 0 < tally.arrivals < 20 * 60
    assert max(priorities) == min(19, psutil.Process().nice() + 2)


async def test_a_repeat_that_names_another_order_is_found(tmp_path: Path) -> None:
    """Double clicks: the same key, at once. Two order ids for one key are the client's to notice."""
    other = "01900000-0000-7000-8000-000000000001"
    second = answer(202, json.dumps({"orderId": other}).encode(), f"Location: /api/order/{other}/status")
    async with server(lambda n: (0.0, second if n % 2 else ACCEPTANCE)) as url:
        tally, lines = await load(url, tmp_path, rate=2, seconds=0.4, connections=4, double_clicks=1.0)
    assert (tally.arrivals, tally.requests, len({line["key"] for line in lines})) == (1, 2, 1)
    assert len(tally.two_orders) == 1


@pytest.mark.parametrize(("total", "count"), [(10, 3), (2, 5), (64, 1)])
def test_pieces_add_up(total: int, count: int) -> None:
    assert sum(pieces(total, count, index) for index in range(count)) == total


def test_the_modes_of_the_command_are_those_of_a_plan() -> None:
    assert {mode.value for mode in ModeName} == set(get_args(Mode))


@pytest.mark.parametrize(
    ("app", "arguments", "told"),
    [
        (buyers.app, ["open", "--tokens", __file__], "Invalid value for '--rate': open needs a rate"),
        (buyers.app, ["closed"], "Missing option '--tokens'."),
        (load_test.app, ["nonsense"], "Invalid value for 'shape': 'nonsense' is not one of"),
        (micro.app, ["--rounds", "0"], "Invalid value for '--rounds': "),
        (pauses.app, ["--rate", "1"], "Invalid value for '--rate': "),
    ],
)
def test_a_fault_of_usage_is_one_line(
    app: typer.Typer, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        typer.main.get_command(app).main(arguments, prog_name="x")
    said = capsys.readouterr().err
    assert (ended.value.code, said.count("\n")) == (2, 1)
    assert said.startswith(f"x: {told}")
