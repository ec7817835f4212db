"""What analysts make of a replay: the views' numbers, the proof, the page, and the questions that docs/sql.md answers."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.analysis import pictures
from consumers.analysis.answers import QueryError, as_csv, as_json, as_table, ask
from consumers.analysis.lake import ADDED_LATER, load_client_log, open_lake
from consumers.analysis.proof import proof_of, show
from consumers.analysis.report import make_report, write
from consumers.audit.log_book import LogBook
from consumers.replay.output import output
from consumers.replay.reader import ReplayError
from consumers.replay.table import SCHEMA, to_table
from schemas.codec import encode
from schemas.events import AnyEvent, OrderPlaced, OrderStatusChanged, StockOpened
from schemas.ids import new_order_id
from schemas.order_state import TERMINAL, Status
from schemas.topics import ORDER_STATUS, ORDERS
from tests.events import events

from .log_history import NOON_MS, PRODUCT, FakeRecord, History, a_small_sale

DOCS = Path(__file__).parents[2] / "docs"
DATA_PAGE, SQL_PAGE = DOCS / "data.md", DOCS / "sql.md"
VIEWS = ("events", "orders", "payments", "products", "order_history", "stock_timeline", "funnel")


def lake_of(folder: Path, history: History, ending: str = "parquet") -> duckdb.DuckDBPyConnection:
    out = folder / f"sale.{ending}"
    with output(str(out), by_date=False, force=True) as opened:
        opened.write(*to_table(history.records()))
    return open_lake([out])


def rows(lake: duckdb.DuckDBPyConnection, query: str) -> list[tuple[Any, ...]]:
    [answer] = ask(lake, query)
    return answer.rows


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_the_views_fold_copies_and_say_how_orders_went(tmp_path: Path, ending: str) -> None:
    history, orders = a_small_sale()
    lake = lake_of(tmp_path, history, ending)
    found = rows(
        lake, "SELECT order_id, quantity, total_cents, status, placed_records, took_ms FROM orders ORDER BY version"
    )
    assert found == [
        (orders[0].order_id, 2, 500, "confirmed", 2, 730),
        (orders[1].order_id, 3, 750, "payment_failed", 1, 730),
        (orders[2].order_id, 1, 250, "confirmed", 1, 730),
        (orders[3].order_id, 2, 500, "queued", 1, None),
    ]
    assert rows(lake, "SELECT outcome, charge_ms, requests FROM payments ORDER BY requested_at") == [
        ("confirmed", 695, 1),
        ("payment_failed", 695, 1),
        ("confirmed", 695, 1),
    ]
    timeline = rows(lake, "SELECT version, kind, change, available FROM stock_timeline")
    assert timeline == [
        (0, "opened", None, 8),
        (1, "placed", -2, 6),
        (2, "placed", -3, 3),
        (3, "placed", -1, 2),
        (4, "placed", -2, 0),
        (5, "sold", 0, 0),
        (6, "released", 3, 3),
        (7, "sold", 0, 3),
    ]
    assert rows(lake, "SELECT status, orders, units, share FROM funnel") == [
        ("queued", 4, 8, 1.0),
        ("awaiting_payment", 3, 6, 0.75),
        ("processing_payment", 3, 6, 0.75),
        ("confirmed", 2, 3, 0.5),
        ("payment_failed", 1, 3, 0.25),
    ]
    history_of_first = "SELECT status, since_previous_ms FROM order_history WHERE order_id = '{}' ORDER BY step"
    assert rows(lake, history_of_first.format(orders[0].order_id)) == [
        ("queued", None),
        ("processing", 10),
        ("pending", 0),
        ("awaiting_payment", 0),
        ("processing_payment", 20),
        ("confirmed", 700),
    ]


@settings(max_examples=8)
@given(st.lists(events, max_size=24))
def test_no_event_breaks_a_view(tmp_path_factory: pytest.TempPathFactory, found: list[AnyEvent]) -> None:
    out = tmp_path_factory.mktemp("lake") / "x.parquet"
    with output(str(out), by_date=False, force=False) as opened:
        opened.write(*to_table([FakeRecord("orders", n, encode(event)) for n, event in enumerate(found)]))
    lake = open_lake([out])
    for view in VIEWS:
        rows(lake, f"FROM {view}")


def test_a_directory_by_date_is_read_like_a_file(tmp_path: Path) -> None:
    history, _ = a_small_sale()
    records = [*history.records(), FakeRecord("orders", 99, b"odd")]
    with output(str(tmp_path / "lake"), by_date=True, force=False) as opened:
        opened.write(*to_table(records))
    assert rows(open_lake([tmp_path / "lake"]), "SELECT count(*) FROM events") == [(len(history.events),)]


def test_files_of_before_a_column_was_added_are_read_beside_new_ones(tmp_path: Path) -> None:
    history, _ = a_small_sale()
    table, odd = to_table(history.records())
    for name, written in (("new", table), ("old", table.drop_columns(sorted(ADDED_LATER)))):
        pq.write_table(written, tmp_path / f"{name}.parquet")
    assert not odd
    lake = open_lake([tmp_path / "old.parquet", tmp_path / "new.parquet"])
    assert rows(lake, "SELECT count(*) FROM events") == [(2 * len(history.events),)]
    for view in VIEWS:
        rows(lake, f"FROM {view}")


def test_answers_for_people_and_machines(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, a_small_sale()[0])
    query = "SELECT status, count(*) AS orders, NULL AS nothing FROM orders GROUP BY status ORDER BY status; SELECT 2 AS two"
    first, second = ask(lake, query)
    assert as_table(first).splitlines()[2:] == [
        "confirmed            2        -",
        "payment_failed       1        -",
        "queued               1        -",
        "(3 rows)",
    ]
    assert as_csv(first).splitlines()[:2] == ["status,orders,nothing", "confirmed,2,"]
    assert msgspec.json.decode(as_json(second)) == [{"two": 2}]
    with pytest.raises(QueryError, match="nix"):
        list(ask(lake, "SELECT nix FROM orders"))


@pytest.mark.parametrize("name", ["nowhere.parquet", "readme.md", "empty"])
def test_what_is_no_replay_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "readme.md").write_text("# no rows")
    with pytest.raises(ReplayError, match=name.partition(".")[0]):
        open_lake([tmp_path / name])


def test_another_parquet_file_is_refused(tmp_path: Path) -> None:
    duckdb.execute(f"COPY (SELECT 1 AS one) TO '{tmp_path / 'other.parquet'}'")
    with pytest.raises(ReplayError, match="not files of `thrones replay`"):
        open_lake([tmp_path / "other.parquet"])


def book_of(history: History) -> LogBook:
    book = LogBook(PRODUCT)
    for n, (_, event) in enumerate(history.events):
        book.add(event, n)
    return book


def test_the_log_of_a_right_sale_is_a_proof() -> None:
    history, _ = a_small_sale()
    proof = proof_of(PRODUCT, book_of(history))
    assert proof.problems == []
    assert (proof.accepted, proof.confirmed, proof.released, proof.under_way) == (8, 3, 3, 2)
    [epoch] = proof.epochs
    assert (epoch.versions, epoch.missing, epoch.lowest, epoch.ended_with) == (7, 0, 0, (3, 2, 3))
    assert "PROVED: never oversold." in show(proof)


def test_ends_that_are_announced_again_after_a_rebuild_add_up() -> None:
    """A confirmed order is sold by its news, as in every epoch; what was given back before gives nothing back again."""
    history = History(10)
    history.end(history.place(2), Status.CONFIRMED)
    history.end(history.place(3), Status.PAYMENT_FAILED)
    ends = [event for _, event in history.events if isinstance(event, OrderStatusChanged)]
    opened = StockOpened(
        product_id=PRODUCT,
        epoch=2,
        initial=10,
        available=8,
        held=2,
        sold=0,
        opened_at_ms=NOON_MS,
        reason="new redis run",
    )
    again = [
        msgspec.structs.replace(end, epoch=2, version=version, available=8, returned=0)
        for version, end in enumerate(ends, start=1)
    ]
    history.events += [(ORDERS.name, opened), *((ORDER_STATUS.name, event) for event in again)]
    proof = proof_of(PRODUCT, book_of(history))
    assert proof.problems == []
    assert proof.epochs[-1].ended_with == (8, 0, 2)


def oversells(history: History) -> None:
    history.end(history.place(4), Status.CONFIRMED)


def loses_a_version(history: History) -> None:
    history.events = [
        (topic, event) for topic, event in history.events if not (isinstance(event, OrderPlaced) and event.version == 2)
    ]


def uses_a_version_twice(history: History) -> None:
    history.version -= 1
    history.place(0 + 1)


def sells_what_it_gave_back(history: History) -> None:
    """The unit of a declined order is counted as sold too."""
    topic, end = history.events[-2]
    assert isinstance(end, OrderStatusChanged)
    history.events[-2] = (topic, msgspec.structs.replace(end, status=Status.CONFIRMED))


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (oversells, "-1 units on sale"),
        (loses_a_version, "version missing"),
        (uses_a_version_twice, "version used twice"),
        (sells_what_it_gave_back, "are not the 8 it was opened with"),
    ],
)
def test_a_log_that_does_not_follow_is_no_proof(spoil: Any, named: str) -> None:
    history, _ = a_small_sale()
    spoil(history)
    proof = proof_of(PRODUCT, book_of(history))
    assert not proof.proved
    assert any(named in problem for problem in proof.problems), proof.problems
    assert "NOT PROVED" in show(proof)


def test_the_page_needs_nothing_else_and_has_its_pictures_beside_it(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, a_small_sale()[0])
    report = make_report(lake)
    assert not re.search(r"(src|href)=\"(?!#)", report.page)
    assert "Never oversold: the stock never fell below 0, no change missing." in report.page
    assert report.page.count("<svg") == 4
    ids = re.findall(r'\bid="([^"]+)"', report.page)
    assert len(ids) == len(set(ids))
    files = write(report, tmp_path / "sale.html", force=False)
    assert [file.name for file in files[1:]] == [f"sale-{name}.png" for name in ("stock", "rates", "delays", "funnel")]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files[1:])
    with pytest.raises(ReplayError, match="--force"):
        write(report, tmp_path / "sale.html", force=False)


def test_refused_requests_are_drawn_from_the_clients_own_log(tmp_path: Path) -> None:
    """The log knows nothing of them."""
    lake = lake_of(tmp_path, a_small_sale()[0])
    assert "requests refused" not in make_report(lake).page
    log = tmp_path / "clients.jsonl"
    at_ms = NOON_MS + 500
    log.write_text(
        "".join(
            f'{{"at_ms": {at_ms}, "user": 1, "outcome": "{outcome}", "product": {product}, "code": "sold_out"}}\n'
            for outcome, product in (("R", PRODUCT), ("R", PRODUCT), ("A", PRODUCT), ("R", PRODUCT + 1))
        )
    )
    load_client_log(lake, log)
    page = make_report(lake).page
    assert "<dt>requests refused</dt><dd>2</dd>" in page
    assert "given back, refused, in slices of 1 s." in page
    log.write_text("not a log\n")
    with pytest.raises(ReplayError, match=r"clients\.jsonl is no client log"):
        load_client_log(lake, log)


@pytest.mark.parametrize("seconds", [0, 1, 30, 119, 150, 297, 3_000, 7_100, 140_000, 2_000_000, 90_000_000])
def test_a_sale_of_any_length_has_a_readable_axis(seconds: int) -> None:
    """A few ticks, and no warning (warnings are errors here)."""
    stock = pictures.stock({1: [(0.0, 9), (seconds, 0)]}, seconds)
    rates = pictures.rates({"accepted": [(0, 1.0), (seconds, 1.0)]}, 1, seconds) if seconds < 10_000 else stock
    for figure in (stock, rates):
        pictures.to_svg(figure)
        assert 2 <= len(figure.axes[0].get_xticks()) <= 8


def axis_of(figure: Any) -> tuple[Any, ...]:
    return (figure.axes[0].get_xlim(), figure.axes[0].get_xlabel())


@pytest.mark.parametrize(
    ("last_s", "label"), [(1, "seconds"), (170, "seconds"), (400, "minutes"), (90_000, "hours"), (900_000, "days")]
)
def test_the_pictures_of_one_sale_have_one_time_axis(last_s: int, label: str) -> None:
    """Seconds, or what a longer sale is counted in, since the first order: not the clock's time beside it."""
    stock = pictures.stock({1: [(0.5, 9)]}, last_s)
    rates = pictures.rates({"accepted": [(0, 1.0)]}, 10, last_s)
    assert axis_of(stock) == axis_of(rates)
    assert axis_of(stock)[1].startswith(f"{label} since the first order")


def test_the_page_is_about_the_product_by_its_name(tmp_path: Path) -> None:
    """As the opening of its stock has it; openings of before names were in them have the number alone."""
    history, _ = a_small_sale()
    assert f"<h1>The sale of product {PRODUCT}</h1>" in make_report(lake_of(tmp_path, history)).page
    named = msgspec.structs.replace(history.events[0][1], name="Dagger <b>&</b> sheath")
    history.events[0] = (ORDERS.name, named)
    page = make_report(lake_of(tmp_path, history)).page
    title = f"The sale of Dagger &lt;b&gt;&amp;&lt;/b&gt; sheath (product {PRODUCT})"
    assert f"<title>{title}</title>" in page
    assert f"<h1>{title}</h1>" in page


def a_foreign_order(history: History) -> OrderPlaced:
    """Of a product that was never put on sale, with figures that no sum can hold."""
    stray = msgspec.structs.replace(
        history.place(1), product_id=999, quantity=2**31 - 1, unit_price_cents=2**63 - 1, placed_at_ms=2**62
    )
    history.events[-1] = (ORDERS.name, stray)
    history.version -= 1
    return stray


def test_records_of_a_product_that_was_never_opened_are_told_and_left_out(tmp_path: Path) -> None:
    history, orders = a_small_sale()
    a_foreign_order(history)
    lake = lake_of(tmp_path, history)
    assert rows(lake, "SELECT product_id, opened, orders FROM products ORDER BY product_id") == [
        (PRODUCT, True, len(orders)),
        (999, False, 1),
    ]
    report = make_report(lake)
    assert (
        "Left out are orders of products that were never put on sale in these records: 1 of product 999." in report.page
    )
    assert f"The sale of product {PRODUCT}" in report.page
    assert f"<dt>orders accepted</dt><dd>{len(orders)}</dd>" in report.page


def test_a_stretch_without_any_opening_is_drawn_all_the_same(tmp_path: Path) -> None:
    history, _ = a_small_sale()
    del history.events[0]
    report = make_report(lake_of(tmp_path, history))
    assert report.left_out == ""
    assert f"The sale of product {PRODUCT}" in report.page


def test_what_stands_on_a_topic_that_is_not_for_it_is_in_no_view(tmp_path: Path) -> None:
    history, orders = a_small_sale()
    end = next(
        event for _, event in history.events if isinstance(event, OrderStatusChanged) and event.status in TERMINAL
    )
    history.events.append((ORDERS.name, msgspec.structs.replace(end, order_id=new_order_id())))
    history.events.append((ORDER_STATUS.name, msgspec.structs.replace(orders[0], order_id=new_order_id())))
    assert rows(lake_of(tmp_path, history), "SELECT count(*) FROM orders") == [(len(orders),)]


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_files_of_before_a_column_was_added_are_read(tmp_path: Path, ending: str) -> None:
    history, orders = a_small_sale()
    lake = lake_of(tmp_path, history)
    old = tmp_path / f"old.{ending}"
    options = {"parquet": "", "csv": "(HEADER)", "jsonl": "(FORMAT json)"}[ending]
    lake.execute(f"COPY (SELECT * EXCLUDE (name) FROM events) TO '{old}' {options}")
    assert rows(open_lake([old]), "SELECT count(*) FROM orders") == [(len(orders),)]
    assert rows(open_lake([old, tmp_path / "sale.parquet"]), "SELECT count(*) FROM orders") == [(len(orders),)]


def test_a_page_that_may_not_be_written_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    report = make_report(lake_of(tmp_path, a_small_sale()[0]))
    with pytest.raises(ReplayError, match=r"/sys/sale\.html could not be written"):
        write(report, Path("/sys/sale.html"), force=False)
    (tmp_path / "sale-funnel.png").mkdir()  # the last of the five files
    with pytest.raises(ReplayError, match=r"sale-funnel\.png is a directory"):
        write(report, tmp_path / "sale.html", force=False)
    assert sorted(path.name for path in tmp_path.glob("*sale*")) == ["sale-funnel.png", "sale.parquet"]


def test_a_full_disk_under_standard_output_is_one_line(tmp_path: Path) -> None:
    lake_of(tmp_path, a_small_sale()[0])
    asked = [sys.executable, "-m", "thrones", "sql", "FROM events", "--csv", "--data", str(tmp_path / "sale.parquet")]
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(asked, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (1, "thrones: No space left on device\n")


def test_an_empty_log_is_not_drawn(tmp_path: Path) -> None:
    history = History(8)
    with pytest.raises(ReplayError, match="no orders"):
        make_report(lake_of(tmp_path, history))
    history.place(1)
    with pytest.raises(ReplayError, match="no orders of product 8 in the log; there are: 7"):
        make_report(lake_of(tmp_path, history), 8)
    assert "Never oversold" in make_report(lake_of(tmp_path, history)).page


def test_the_data_dictionary_names_every_column() -> None:
    page = DATA_PAGE.read_text()
    assert [name for name in SCHEMA.names if f"`{name}`" not in page] == []


def test_the_data_dictionary_names_every_column_of_every_view(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, a_small_sale()[0])
    page = SQL_PAGE.read_text()
    for view in VIEWS[1:]:
        section = page.partition(f"### {view}\n")[2].partition("\n### ")[0].partition("\n## ")[0]
        columns = [column for column, *_ in rows(lake, f"DESCRIBE {view}")]
        assert [column for column in columns if f"`{column}`" not in section] == [], view


QUESTIONS = re.findall(r"```sql\n(.*?)```", SQL_PAGE.read_text(), re.S)


@pytest.mark.parametrize("question", QUESTIONS, ids=range(len(QUESTIONS)))
def test_the_questions_of_the_data_dictionary_are_answered(tmp_path: Path, question: str) -> None:
    lake = lake_of(tmp_path, a_small_sale()[0])
    [answer] = ask(lake, question)
    assert answer.columns
