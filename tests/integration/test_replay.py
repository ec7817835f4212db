"""Replay, proof and rewind on real servers: they read what is there, touch nothing, and leave a whole file or none."""

import asyncio
import json
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from consumers.analysis.lake import open_lake, replay_into
from consumers.analysis.proof import NoSuchProduct, prove
from consumers.analysis.rewind import Foreign, RewindImpossible, rewind
from consumers.analysis.rewind import show as show_rewound
from consumers.audit.audit import foreign, lost
from consumers.audit.readers import read_log
from consumers.replay.reader import ReplayError, topic_reader
from consumers.replay.replay import Request, replay
from consumers.replay.when import AppendTime, Offset
from infra.kafka.offsets import Offsets
from infra.settings import Settings
from schemas.codec import VERSION_HEADER, encode
from schemas.events import OrderPlaced, PaymentRequested
from schemas.ids import OrderId, ProductId, new_order_id
from schemas.order_state import Status
from schemas.topics import ORDER_STATUS, ORDERS
from tests.conftest import child_env

from .books import Sale, a_sale
from .books import settings as servers_of_ours

PARTITIONS = 3
EARLY, LATE = 40, 20


@dataclass(frozen=True)
class Topic:
    """Forty records, a pause, twenty more; one of the forty is no event."""

    name: str
    settings: Settings
    early: list[OrderId]
    late: list[OrderId]
    between_ms: int


def event(order_id: OrderId) -> bytes:
    return encode(PaymentRequested(order_id=order_id, product_id=1, requested_at_ms=1))


@asynccontextmanager
async def a_topic() -> AsyncIterator[Topic]:
    settings = servers_of_ours()
    name = f"replay-{uuid.uuid4().hex[:12]}"
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap_servers)
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka_bootstrap_servers)
    await admin.start()
    await producer.start()
    try:
        by_broker = {"message.timestamp.type": "LogAppendTime"}
        await admin.create_topics([NewTopic(name, PARTITIONS, 1, topic_configs=by_broker)])
        early, late = ([new_order_id() for _ in range(count)] for count in (EARLY, LATE))

        async def send(order_id: OrderId, value: bytes) -> int:
            record = await producer.send_and_wait(name, value, order_id.encode(), headers=[VERSION_HEADER])
            return int(record.timestamp)

        for order_id in early[:-1]:
            await send(order_id, event(order_id))
        between_ms = await send(early[-1], b"\xff not an event") + 1
        await asyncio.sleep(0.01)  # the broker's clock is to tell the two apart
        for order_id in late:
            await send(order_id, event(order_id))
        yield Topic(name, settings, early, late, between_ms)
    finally:
        await producer.stop()
        await admin.delete_topics([name])
        await admin.close()


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def ids(path: Path) -> list[str]:
    return sorted(pq.read_table(path)["order_id"].to_pylist())


async def test_a_replay_has_every_record_once_and_says_what_was_no_event(tmp_path: Path) -> None:
    async with a_topic() as topic:
        out = tmp_path / "x.parquet"
        summary = await replay(topic.settings, Request((topic.name,), str(out)))
        assert ids(out) == sorted(topic.early[:-1] + topic.late)
        assert (summary.records, summary.written, summary.undecodable) == (EARLY + LATE, EARLY + LATE - 1, 1)
        [aside] = out.with_name("x.parquet.undecodable.jsonl").read_text().splitlines()
        assert json.loads(aside)["key"] == topic.early[-1]
        assert sum(p.end - p.start for p in summary.topics[topic.name].partitions) == EARLY + LATE


async def test_bounds_are_times_of_the_brokers_index_or_offsets(tmp_path: Path) -> None:
    async with a_topic() as topic:
        out = tmp_path / "x.parquet"
        here = AppendTime(topic.between_ms)
        await replay(topic.settings, Request((topic.name,), str(out), start=here))
        assert ids(out) == sorted(topic.late)
        await replay(topic.settings, Request((topic.name,), str(out), end=here, force=True))
        assert ids(out) == sorted(topic.early[:-1])
        summary = await replay(topic.settings, Request((topic.name,), str(out), Offset(2), Offset(4), force=True))
        assert summary.records == 2 * PARTITIONS
        assert set(pq.read_table(out)["offset"].to_pylist()) == {2, 3}


async def test_one_key_is_one_orders_records(tmp_path: Path) -> None:
    async with a_topic() as topic:
        out = tmp_path / "x.parquet"
        await replay(topic.settings, Request((topic.name,), str(out), key=topic.late[3]))
        assert ids(out) == [topic.late[3]]


async def test_what_cannot_be_read_is_said_and_leaves_no_file(tmp_path: Path) -> None:
    async with a_topic() as topic:
        out = str(tmp_path / "x.parquet")
        in_a_year = AppendTime(topic.between_ms + 31_536_000_000)
        for request, said in (
            (Request(("no-such-topic",), out), f"no topic 'no-such-topic'; there are: .*{topic.name}"),
            (
                Request((topic.name,), out, start=in_a_year),
                f"no records between these bounds: {topic.name} has offsets 0 to",
            ),
            (Request((topic.name,), out, start=Offset(10_000)), "no records between these bounds"),
            (Request((topic.name,), out, key="nobody"), "no record with key 'nobody'"),
        ):
            with pytest.raises(ReplayError, match=said):
                await replay(topic.settings, request)
            assert names(tmp_path) == []


async def test_a_replay_joins_no_group_and_writes_nothing(tmp_path: Path) -> None:
    async with a_topic() as topic:
        admin = AIOKafkaAdminClient(bootstrap_servers=topic.settings.kafka_bootstrap_servers)
        await admin.start()
        try:
            groups = await admin.list_consumer_groups()
            await replay(topic.settings, Request((topic.name,), str(tmp_path / "x.csv")))
            assert await admin.list_consumer_groups() == groups
        finally:
            await admin.close()
        async with topic_reader(topic.settings) as reader:
            spans = await reader.spans([topic.name], None, None)
        assert sum(span.size for span in spans.values()) == EARLY + LATE


def thrones(
    settings: Settings, folder: Path, *arguments: str, blocks: int | None = None
) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own; `blocks`: no file may grow beyond that many KiB."""
    limit = "" if blocks is None else f"ulimit -f {blocks}; "
    return subprocess.run(
        ["bash", "-c", f'{limit}exec "$@"', "bash", sys.executable, "-m", "thrones", *arguments],
        env=child_env(settings, THRONES_STATE_DIR=str(folder), COLUMNS="200"),
        capture_output=True,
        text=True,
        timeout=100,  # the machine is busy with other tests
    )


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.parquet"])
async def test_a_full_disk_leaves_the_old_file(tmp_path: Path, name: str) -> None:
    async with a_topic() as topic:
        out = tmp_path / name
        out.write_text("what was there")
        ended = thrones(topic.settings, tmp_path, "replay", topic.name, "--out", str(out), "--force", blocks=1)
        assert ended.returncode == 1
        assert "could not be written, and nothing of it was left: File too large" in ended.stderr
        assert "Traceback" not in ended.stderr
        assert out.read_text() == "what was there"
        assert names(tmp_path) == [name]


async def test_a_full_disk_leaves_no_half_of_a_directory(tmp_path: Path) -> None:
    async with a_topic() as topic:
        by_date = ("--out", str(tmp_path / "lake"), "--partition-by", "date")
        ended = thrones(topic.settings, tmp_path, "replay", topic.name, *by_date, blocks=1)
        assert ended.returncode == 1
        assert "lake could not be written, and nothing of it was left: File too large" in ended.stderr
        assert names(tmp_path) == []


async def test_standard_output_has_the_rows_alone(tmp_path: Path) -> None:
    async with a_topic() as topic:
        ended = thrones(topic.settings, tmp_path, "replay", topic.name, "--from", "1", "--json")
        assert ended.returncode == 0, ended.stderr
        lines = [json.loads(line) for line in ended.stdout.splitlines()]
        written = EARLY + LATE - PARTITIONS
        assert len(lines) in (written, written - 1)  # the one that is no event may be the first of its partition
        assert '"out":"-"' in ended.stderr


@asynccontextmanager
async def an_ended_sale() -> AsyncIterator[tuple[Sale, list[OrderId]]]:
    async with a_sale(10) as sale:
        orders = []
        for user, status in enumerate([Status.CONFIRMED] * 3 + [Status.PAYMENT_FAILED], start=1):
            wish, held = await sale.reserve(user, 2, key=f"key {user}")
            await sale.publish(wish, held)
            await sale.place(wish, held)
            await sale.end(wish, status)
            orders.append(wish.order_id)
        yield sale, orders


async def test_the_log_of_a_sale_is_a_proof_and_its_database(tmp_path: Path) -> None:
    async with an_ended_sale() as (sale, orders):
        proof = await prove(sale.settings, sale.product)
        assert proof.problems == []
        assert (proof.accepted, proof.confirmed, proof.released, proof.under_way) == (8, 6, 2, 0)
        assert [epoch.ended_with for epoch in proof.epochs] == [(4, 0, 6)]
        rewound = await rewind(sale.settings, sale.product)
        assert rewound.differences == []
        assert (rewound.equal, rewound.products, rewound.orders) == (True, 1, len(orders))
        await replay_into(sale.settings, tmp_path / "events.parquet")
        lake = open_lake([tmp_path / "events.parquet"])
        query = "SELECT status, count(*) FROM orders WHERE product_id = ? GROUP BY status ORDER BY status"
        assert lake.execute(query, [sale.product]).fetchall() == [("confirmed", 3), ("payment_failed", 1)]


async def a_status_changed(sale: Sale, order: OrderId) -> None:
    await sale.pool.execute("UPDATE orders SET status = 'failed' WHERE id = $1", order)


async def an_amount_changed(sale: Sale, order: OrderId) -> None:
    await sale.pool.execute("UPDATE orders SET unit_price_cents = 1 WHERE id = $1", order)


async def a_row_was_lost(sale: Sale, order: OrderId) -> None:
    await sale.pool.execute("DELETE FROM orders WHERE id = $1", order)


async def a_sum_is_wrong(sale: Sale, _: OrderId) -> None:
    await sale.pool.execute("UPDATE products SET taken = taken - 1 WHERE id = $1", sale.product)


Spoil = Callable[[Sale, OrderId], Coroutine[None, None, None]]


@pytest.mark.parametrize(
    ("spoil", "column"),
    [
        (a_status_changed, "status"),
        (an_amount_changed, "unit_price_cents"),
        (a_row_was_lost, "row"),
        (a_sum_is_wrong, "taken"),
    ],
)
async def test_rewind_names_the_row_that_differs(spoil: Spoil, column: str) -> None:
    async with an_ended_sale() as (sale, orders):
        await spoil(sale, orders[0])
        rewound = await rewind(sale.settings, sale.product)
        assert (rewound.equal, rewound.different) == (False, 1)
        [difference] = rewound.differences
        assert difference.column == column
        assert difference.id == (str(sale.product) if column == "taken" else orders[0])
        left = await sale.pool.fetch("SELECT datname FROM pg_database WHERE datname LIKE 'rewind_%'")
        assert left == []


async def test_rewind_without_the_right_to_make_a_database_says_so() -> None:
    async with a_sale(1) as sale:
        role = f"reader_{uuid.uuid4().hex[:8]}"
        await sale.pool.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{role}'")
        try:
            password = type(sale.settings.postgres_password)(role)
            poor = sale.settings.model_copy(update={"postgres_user": role, "postgres_password": password})
            with pytest.raises(RewindImpossible, match=f"ALTER ROLE {role} CREATEDB"):
                await rewind(poor, sale.product)
        finally:
            await sale.pool.execute(f"DROP ROLE {role}")


async def test_rewind_of_a_product_that_nobody_knows_is_no_success() -> None:
    async with a_sale(1) as sale:
        with pytest.raises(RewindImpossible, match="neither the log nor the database knows product 3"):
            await rewind(sale.settings, ProductId(3))


async def test_a_log_that_sold_too_much_is_said_and_the_rest_is_compared() -> None:
    async with a_sale(4) as sale:
        await sale.redis.hset(f"stock:{{p{sale.product}}}", mapping={"available": 6, "initial": 6})
        for user in (1, 2, 3):
            wish, held = await sale.reserve(user, 2)
            await sale.publish(wish, held)
        rewound = await rewind(sale.settings, sale.product)
        assert not rewound.equal
        assert rewound.oversold == [f"product {sale.product}: 6 units taken of 4"]
        assert rewound.orders == 3
        assert f"OVERSOLD by the log: product {sale.product}" in show_rewound(rewound)
        proof = await prove(sale.settings, sale.product)
        assert not proof.proved


async def test_foreign_records_are_told_and_left_out_of_every_comparison() -> None:
    """Of a product that was never put on sale, with more units than a column holds, and on a topic that is not for them."""
    async with an_ended_sale() as (sale, orders):
        nobodys = ProductId(sale.product + 1)
        stray = an_order(nobodys, quantity=2**31 - 1)
        for event, topic in ((stray, ORDERS), (an_order(nobodys), ORDERS), (an_order(sale.product), ORDER_STATUS)):
            await sale.publisher.publish(topic, event.order_id, encode(event))
        whole = await rewind(sale.settings)
        assert Foreign(nobodys, 2) in whole.foreign
        assert whole.misplaced >= 1
        assert f"2 of product {nobodys}" in show_rewound(whole)
        rewound = await rewind(sale.settings, sale.product)
        assert (rewound.equal, rewound.orders, rewound.foreign) == (True, len(orders), [])
        with pytest.raises(RewindImpossible, match=f"knows product {nobodys}, but for 2 records"):
            await rewind(sale.settings, nobodys)
        assert (await prove(sale.settings, sale.product)).proved
        with pytest.raises(NoSuchProduct, match=f"product {nobodys} was never opened on the log; 2 orders name it"):
            await prove(sale.settings, nobodys)


async def test_an_audit_of_all_tells_what_belongs_to_no_product() -> None:
    """A mistake of somebody is a remark; a product that was put on sale and is gone is a problem."""
    async with an_ended_sale() as (sale, _):
        nobodys = ProductId(sale.product + 1)
        stray = an_order(nobodys)
        await sale.publisher.publish(ORDERS, stray.order_id, encode(stray))
        offsets = Offsets(sale.settings)
        in_log = await read_log(sale.settings, offsets)
        await offsets.close()
        assert any(f"product {nobodys}: 1 orders on the log" in text for text in foreign(in_log, [sale.product]))
        assert not any(f"product {nobodys}:" in text for text in lost(in_log, [sale.product]))
        assert f"product {sale.product}: opened on the log, not in Postgres" in lost(in_log, [])


def an_order(product: ProductId, quantity: int = 1) -> OrderPlaced:
    return OrderPlaced(
        order_id=new_order_id(),
        product_id=product,
        user_id=1,
        quantity=quantity,
        unit_price_cents=100,
        currency="USD",
        placed_at_ms=1_795_348_800_000,
        epoch=1,
        version=1,
        available=0,
    )


async def test_a_product_that_the_log_does_not_know_is_said() -> None:
    async with a_sale(1) as sale:
        with pytest.raises(NoSuchProduct, match="product 3 is not in the log"):
            await prove(sale.settings, ProductId(3))


def test_no_server_is_said_in_one_line(tmp_path: Path) -> None:
    settings = servers_of_ours().model_copy(update={"kafka_bootstrap_servers": "127.0.0.1:1"})
    for command in (["replay", "orders"], ["rewind"]):
        ended = thrones(settings, tmp_path, *command)
        assert ended.returncode == 1
        assert "is the stack up?" in ended.stderr
        assert "Traceback" not in ended.stderr
