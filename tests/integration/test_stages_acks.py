"""Stages as processes on a real broker: nothing is lost when one is killed, and what cannot be processed does not stop it."""

import asyncio
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from infra.redis.client import Redis
from infra.settings import Settings
from schemas.codec import encode
from schemas.events import OrderPlaced, PaymentRequested
from schemas.ids import OrderId, ProductId, new_order_id
from schemas.order_state import Status
from schemas.topics import DEAD_LETTERS, PAYMENTS, Topic
from tests.books import open_books
from tests.conftest import child_env
from tests.log import VERSIONED, Headers, Tail, commit, committed, create, event_of, own_topic, producing, tailing
from tests.rows import PRICE_CENTS, create_product

SLOW = {b"slow-fresh", b"slow-known"}
FOLLOWERS = 1_000
EARLIER = 100
MAX_OPEN, BACKLOG = 200, 8_000
CONTROL_PAST = 100  # committed so far while the first record is open: no accident
REPOSITORY = Path(__file__).parents[2]
WITHIN_S = 60.0
pytestmark = pytest.mark.timeout(240)  # processes start, are missed for six seconds, and start again


async def eventually(holds: Callable[[], Awaitable[bool]], what: str) -> None:
    try:
        async with asyncio.timeout(WITHIN_S):
            while not await holds():  # noqa: ASYNC110 - the other side is another process
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"not within {WITHIN_S:.0f} s: {what}") from None


async def eventually_committed(member: "StageProcess", offsets: dict[int, int]) -> None:
    """Wait for exactly these; where a partition has gone further, say so."""
    seen: dict[int, int] = {}

    async def reached() -> bool:
        nonlocal seen
        seen = await member.committed()
        assert all(seen[p] <= offset for p, offset in offsets.items()), f"committed past {offsets}: {seen}"
        return seen == offsets

    await eventually(reached, f"{offsets} committed")


class StageProcess:
    """One member of a group on a topic of its own; `start` again is the supervisor's part."""

    def __init__(self, kind: str, topic: Topic, settings: Settings, folder: Path, **env: str) -> None:
        self.topic, self.settings, self.group = topic, settings, f"group-{uuid.uuid4().hex[:8]}"
        self.work, self.release = folder / "work", folder / "release"
        self._log = folder / "stage.log"
        self._command = [sys.executable, "-m", "tests.integration.stage_process", kind, self.group, topic.name]
        self._command.append(str(topic.partitions))
        self._env = child_env(settings, WORK=str(self.work), RELEASE=str(self.release), **env)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, env=self._env, cwd=REPOSITORY, stdout=log, stderr=log)

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    async def ended(self) -> int:
        """Its exit code, once it has ended by itself."""
        assert self.process is not None
        await asyncio.to_thread(self.process.wait, WITHIN_S)
        return int(self.process.returncode)

    def assert_alive(self) -> None:
        assert self.process is not None
        assert self.process.poll() is None, self._log.read_text()[-3_000:]

    def done(self) -> list[bytes]:
        return self.work.read_bytes().split() if self.work.exists() else []

    def said(self) -> str:
        return self._log.read_text()

    async def committed(self) -> dict[int, int]:
        self.assert_alive()
        return await committed(self.settings, self.group, self.topic)


Start = Callable[..., Awaitable[StageProcess]]


@pytest.fixture
async def stage(settings: Settings, topics: None, tmp_path: Path) -> AsyncIterator[Start]:
    """Start a stage of a kind on a fresh topic and group."""
    started: list[StageProcess] = []

    async def start(kind: str, partitions: int = 1, **env: str) -> StageProcess:
        topic = own_topic(partitions)
        await create(settings, topic)
        started.append(StageProcess(kind, topic, settings, tmp_path, **env))
        started[-1].start()
        return started[-1]

    yield start
    for process in started:
        process.kill()


async def append(stage: StageProcess, partition: int, *values: bytes) -> None:
    async with producing(stage.settings) as producer:
        sent = [await producer.send(stage.topic.name, value, partition=partition) for value in values]
        await asyncio.gather(*sent)


def numbered(name: str, count: int) -> list[bytes]:
    return [b"%s-%d" % (name.encode(), number) for number in range(count)]


async def test_a_member_with_too_much_in_work_leaves_the_rest_in_the_log_and_loses_none_of_it(stage: Start) -> None:
    """A backlog never fills the memory of a member; more than faust buffers waits, and nothing is taken for a gap."""
    values = [b"slow-first", *numbered("follower", BACKLOG)]
    member = await stage("in-order", MAX_OPEN=str(MAX_OPEN))
    await append(member, 0, *values)

    async def full() -> bool:
        member.assert_alive()
        return len(member.done()) == MAX_OPEN - 1

    await eventually(full, f"{MAX_OPEN - 1} records done behind the slow one")
    await eventually_committed(member, {0: 0})
    assert len(member.done()) == MAX_OPEN - 1
    member.release.touch()
    await eventually_committed(member, {0: len(values)})
    assert sorted(member.done()) == sorted(values), "each once, in a single life"


async def test_a_member_reads_a_log_that_ends_before_what_its_group_has_committed(stage: Start) -> None:
    """A wiped broker begins its logs anew, and a commit of the old one that waited for it may come to stand on the new."""
    member = await stage("in-order", partitions=2)
    member.kill()
    await commit(member.settings, member.group, member.topic, {0: 5_000, 1: 0})
    values = numbered("new", 20)
    await append(member, 0, *values[:10])
    await append(member, 1, *values[10:])
    member.start()

    async def read_anew() -> bool:
        return await member.committed() == {0: 10, 1: 10}

    await eventually(read_anew, "the new log read and committed")
    assert sorted(member.done()) == sorted(values)
    await append(member, 0, b"newer")
    await eventually_committed(member, {0: 11, 1: 10})


async def test_a_stage_that_is_asked_tells_what_it_waits_for_and_works_on(stage: Start) -> None:
    """`kill -USR2`: faust's own answer is a debugger on a terminal that is not there."""
    member = await stage("in-order")
    await append(member, 0, b"before")
    await eventually_committed(member, {0: 1})
    assert member.process is not None
    member.process.send_signal(signal.SIGUSR2)

    async def told() -> bool:
        return "Watchdog.run" in member.said()

    await eventually(told, "where the watchdog's task stands")
    await append(member, 0, b"after")
    await eventually_committed(member, {0: 2})


async def test_a_slow_first_record_is_never_committed_past_and_survives_a_kill(stage: Start) -> None:
    """I4: the first record of a partition hangs, its followers finish, two commits pass, kill -9, restart: all is done.

    Partition 0 has never been committed when it hangs (a fresh group), partition 1 has; partition 2 shows that commits
    are made meanwhile.
    """
    member = await stage("in-order", partitions=3)
    await append(member, 1, *numbered("earlier", EARLIER))
    await eventually_committed(member, {0: 0, 1: EARLIER, 2: 0})
    await append(member, 0, b"slow-fresh", *numbered("a", FOLLOWERS))
    await append(member, 1, b"slow-known", *numbered("b", FOLLOWERS))

    async def overtaken() -> bool:
        return len(member.done()) == EARLIER + 2 * FOLLOWERS

    await eventually(overtaken, "the followers overtake the slow records")
    for others in (1, 2):
        await append(member, 2, b"other-%d" % others)
        await eventually_committed(member, {0: 0, 1: EARLIER, 2: others})
    member.kill()
    assert not SLOW & set(member.done())

    member.release.touch()
    member.start()
    await eventually_committed(member, {0: FOLLOWERS + 1, 1: EARLIER + FOLLOWERS + 1, 2: 2})
    followers = {*numbered("a", FOLLOWERS), *numbered("b", FOLLOWERS)}
    assert set(member.done()) == {*SLOW, *followers, *numbered("earlier", EARLIER), b"other-1", b"other-2"}


async def test_faust_concurrency_and_its_own_acks_lose_the_slow_record(stage: Start) -> None:
    """The negative control: the same scene with `concurrency=100` commits past the slow record, and a kill loses it."""
    member = await stage("concurrent")
    await append(member, 0, b"slow", *numbered("follower", 1_000))

    async def committed_past() -> bool:
        return (await member.committed())[0] > CONTROL_PAST

    await eventually(committed_past, "faust commits past the unfinished record")
    member.kill()
    assert b"slow" not in member.done()
    member.release.touch()
    member.start()
    await append(member, 0, b"marker")

    async def marked() -> bool:
        return b"marker" in member.done()

    await eventually(marked, "the restarted member has read to the end")
    assert b"slow" not in member.done()


# -- poison


def poison() -> list[tuple[bytes | None, Headers]]:
    """What no version of ours ever wrote; each must be dead-lettered, each once."""
    good = encode(PaymentRequested(order_id=new_order_id(), product_id=1, requested_at_ms=1))
    placed = encode(order_placed(ProductId(1), new_order_id(), 1))
    return [
        (os.urandom(200), VERSIONED),
        (None, VERSIONED),
        (b"", VERSIONED),
        (b"{}", VERSIONED),
        (b'{"type":"order.unheard"}', VERSIONED),
        (good, [("schema-version", b"99")]),
        (placed, [("schema-version", b"99")]),
        (b"[" * 60_000, VERSIONED),
        (b'{"type":"payment.requested","x":' + b"[" * 60_000, VERSIONED),
        (b"x" * 1_000_000, VERSIONED),
        (b"x" * 5_000_000, VERSIONED),  # larger, once unpacked, than what the dead-letter topic takes
        (good.replace(b'"order_id":"', b'"order_id":"x'), VERSIONED),
        (placed.replace(b'"quantity":1', b'"quantity":%d' % 2**40), VERSIONED),
        (placed.replace(b'"currency":"USD"', b'"currency":"U\\u0000D"'), VERSIONED),
        (placed.replace(b'"version":1', b'"version":-1'), VERSIONED),
    ]


def order_placed(product: ProductId, order_id: OrderId, version: int) -> OrderPlaced:
    return OrderPlaced(
        order_id=order_id,
        product_id=product,
        user_id=1,
        quantity=1,
        unit_price_cents=PRICE_CENTS,
        currency="USD",
        placed_at_ms=1,
        epoch=1,
        version=version,
        available=0,
    )


async def inject(stage: StageProcess, records: list[tuple[bytes | None, Headers]]) -> None:
    async with producing(stage.settings, compression_type="gzip") as producer:
        for value, headers in records:
            await producer.send_and_wait(stage.topic.name, value, b"poison", headers=headers)


async def letters_of(stage: StageProcess, tail: Tail, wanted: int) -> list[dict[str, bytes]]:
    """The headers of the dead letters of this stage's topic."""

    def mine(records: list[Any]) -> list[dict[str, bytes]]:
        headers = [dict(record.headers) for record in records]
        return [h for h in headers if h.get("source-topic") == stage.topic.name.encode()]

    await tail.until(lambda records: len(mine(records)) >= wanted)
    return mine(tail.records)


async def test_poison_among_orders_is_dead_lettered_with_its_origin_and_the_orders_go_on(
    stage: Start, settings: Settings, pool: asyncpg.Pool, redis: Redis, new_product: Callable[[], ProductId]
) -> None:
    """Dead-lettered = injected; the good orders before, between and after become rows and payment requests."""
    product = new_product()
    await create_product(pool, product, 100)
    await open_books(redis, product, 100)
    member = await stage("order")
    bad = [*poison(), (encode(PaymentRequested(order_id=new_order_id(), product_id=1, requested_at_ms=1)), VERSIONED)]
    bad.append((encode(order_placed(ProductId(2**31 - 1), new_order_id(), 1)), VERSIONED))  # no such product
    ids = [new_order_id() for _ in range(len(bad) + 1)]
    good = [(encode(order_placed(product, id_, version)), VERSIONED) for version, id_ in enumerate(ids, 1)]
    mixed: list[tuple[bytes | None, Headers]] = [good[0]]
    for number, record in enumerate(bad, 1):
        mixed += [record, good[number]]
    async with tailing(settings, DEAD_LETTERS, PAYMENTS) as tail:
        await inject(member, mixed)
        headers = await letters_of(member, tail, len(bad))
        await tail.until(lambda records: ids_asked(records) >= set(ids))

        async def all_committed() -> bool:
            return (await member.committed())[0] == len(mixed)

        await eventually(all_committed, "everything is committed")
        headers = await letters_of(member, tail, len(bad))
    assert [int(h["source-offset"]) for h in headers] == list(range(1, len(mixed), 2))
    assert all(h["reason"] and h["source-partition"] == b"0" for h in headers)
    rows = await pool.fetch("SELECT id::text, status FROM orders")
    assert {row["id"]: row["status"] for row in rows} == dict.fromkeys(ids, Status.AWAITING_PAYMENT)


def ids_asked(records: list[object]) -> set[str]:
    events = [event_of(record) for record in records]
    return {event.order_id for event in events if isinstance(event, PaymentRequested)}


async def test_poison_among_payments_is_dead_lettered_and_the_stage_goes_on(stage: Start, settings: Settings) -> None:
    """A request for an order that Postgres does not know is one more letter: nothing is charged for it."""
    member = await stage("payment")
    unknown = encode(PaymentRequested(order_id=new_order_id(), product_id=1, requested_at_ms=1))
    records = [*poison(), (unknown, VERSIONED), (encode(order_placed(ProductId(1), new_order_id(), 1)), VERSIONED)]
    async with tailing(settings, DEAD_LETTERS) as tail:
        await inject(member, records)

        async def all_committed() -> bool:
            return (await member.committed())[0] == len(records)

        await eventually(all_committed, "everything is committed")
        headers = await letters_of(member, tail, len(records))
    assert sorted(int(h["source-offset"]) for h in headers) == list(range(len(records)))
    member.assert_alive()


async def test_too_many_dead_letters_stop_the_stage_with_nothing_acknowledged(stage: Start, settings: Settings) -> None:
    """The limit ends either stage's process through its loop, non-zero; its records stay in the log for whoever looks."""
    members = [await stage(kind, LIMIT="5") for kind in ("order", "payment")]
    for member in members:
        await inject(member, [(b"poison", VERSIONED)] * 12)
    for member in members:
        assert await member.ended() not in (0, -signal.SIGKILL)
        assert (await committed(settings, member.group, member.topic))[0] <= 5


async def test_a_stage_that_is_asked_to_stop_drains_and_exits_clean(stage: Start, settings: Settings) -> None:
    """SIGTERM: what was taken is finished and committed, the exit code is 0."""
    member = await stage("in-order")
    await append(member, 0, *numbered("record", 50))

    async def worked() -> bool:
        return len(member.done()) == 50

    await eventually(worked, "the records are worked on")
    assert member.process is not None
    member.process.send_signal(signal.SIGTERM)
    assert await member.ended() == 0
    assert (await committed(settings, member.group, member.topic))[0] == 50
