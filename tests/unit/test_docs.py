"""What the documents say in, what the code is in: no link leads nowhere, and no table has missed a change."""

import json
import re
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import yaml
from pydantic import SecretStr

from consumers.dead_letters import comebacks
from gateway.app import make_gateway
from gateway.http.problems import KINDS
from infra import reach
from infra.redis import pipeliner
from infra.settings import Settings, SigningSettings
from sale.books.scripts import SCRIPTS
from sale.tables.migrate import MIGRATIONS
from schemas import topics
from schemas.generate import EVENTS, name_of
from schemas.limits import DEFAULT_MAX_QUANTITY
from schemas.money import MOST_CENTS
from streams import acks, dead_letters, order_stage

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"\[[^]]*]\(([^)#\s]*)(#[^)\s]*)?\)")
HEADING = re.compile(r"^#+ (.*)$", re.M)


def read(page: str) -> str:
    return (ROOT / page).read_text()


def anchor(heading: str) -> str:
    """GitHub's: lower case, spaces to dashes, punctuation gone."""
    return "#" + re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    """Files and headings exist; the promises' links to their tests among them."""
    for target, heading in LINK.findall(page.read_text()):
        if target.startswith("http"):
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{target} is not there"
        if heading:
            assert heading in map(anchor, HEADING.findall(file.read_text())), f"{target}{heading} is not there"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_is_short_enough_to_read(page: Path) -> None:
    assert len(page.read_text().splitlines()) <= 250


def test_every_page_has_a_place_in_the_site() -> None:
    places = set(re.findall(r"[ /]([\w/-]+\.md)$", read("mkdocs.yml"), re.M))
    assert {page.name for page in PAGES if page.name != "README.md"} - {Path(place).name for place in places} == set()


def test_what_the_glossary_names_is_in_the_code() -> None:
    """Behind each term: classes, functions and constants of the product, or files."""
    rooms = ("schemas", "infra", "sale", "gateway", "streams", "consumers")
    text = "\n".join(path.read_text() for room in rooms for path in (ROOT / room).rglob("*.py"))
    terms = re.findall(r"^\*\*([^*]+)\*\*(?: \(([^)]*)\))?:", read("docs/glossary.md"), re.M)
    assert [term for term, _ in terms] == sorted((term for term, _ in terms), key=str.lower)
    for term, places in terms:
        for name in re.findall(r"`([^`]+)`", places):
            if "/" in name:
                assert (ROOT / name).exists(), f"{term}: {name}"
            else:
                assert re.search(rf"^(class|def|async def) {name}\b|^{name}\b.* = ", text, re.M), f"{term}: {name}"


def test_every_promise_names_the_tests_that_would_break_it() -> None:
    """Each row of the README's table links to at least one test."""
    table = read("README.md").partition("## Promises")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert rows
    assert all("](tests/" in row for row in rows)


def test_every_feature_of_the_reference_has_its_answer_here() -> None:
    table = read("docs/comparison.md").split("| The reference | Here |\n|---|---|\n")[1]
    rows = [line.strip("|").split(" | ") for line in table.splitlines() if line.startswith("|")]
    assert len(rows) >= 20
    assert all(len(cells) == 2 and all(cell.strip(" |") for cell in cells) for cells in rows), rows


def test_the_page_of_the_interface_lists_exactly_the_codes_there_are() -> None:
    """Status and code of every refusal; wrong credentials are `unauthorized` to clients."""
    told = {(code, int(status)) for status, code in re.findall(r"^\| (\d{3}) \| `(\w+)` \|", read("docs/api.md"), re.M)}
    assert told == {(code, kind.status) for code, kind in KINDS.items() if code != "invalid_credentials"}


async def test_the_page_of_the_interface_lists_exactly_the_routes_there_are() -> None:
    """HEAD and OPTIONS aside."""
    page = read("docs/api.md").partition("## Routes")[2].partition("\n## ")[0]
    told = {tuple(route.split()) for route in re.findall(r"`((?:GET|POST|PUT|DELETE) [^?`]+)`", page)}
    settings = SigningSettings(jwt_secret="k" * 32, bcrypt_cost=10)  # type: ignore[arg-type] # pydantic makes it a secret
    app = make_gateway(settings, MagicMock(), MagicMock(), MagicMock(), MagicMock()).app
    routes = {
        (route.method, route.resource.canonical) for route in app.router.routes() if route.resource and route.method
    }
    assert told == {route for route in routes if route[0] not in ("HEAD", "OPTIONS")}


def test_the_page_of_settings_lists_exactly_the_settings_there_are() -> None:
    """Every environment variable that a process reads."""
    table = read("docs/settings.md")
    told = {
        name
        for line in table.splitlines()
        for name in re.findall(r"`([A-Z][A-Z_]+)`", line.split("|")[1:2][0] if "|" in line else "")
    }
    assert told == {name.upper() for name in Settings.model_fields}


def test_the_page_of_stores_lists_exactly_the_scripts_and_topics_there_are() -> None:
    """The tables of scripts and topics, topics with their partitions."""
    page = read("docs/stores.md")
    assert set(re.findall(r"^\| \[`(\w+)\.lua`]", page, re.M)) == SCRIPTS.keys()
    told = set(re.findall(r"^\| `([\w-]+)` \|[^|]*\|[^|]*\| (\d+) \|", page, re.M))
    assert told == {(topic.name, str(topic.partitions)) for topic in topics.ALL}


def rows_of(page: str, heading: str) -> list[list[str]]:
    """The cells of every row of the tables under a heading."""
    text = read(page).partition(f"{heading}\n")[2]
    depth = heading.count("#")
    text = re.split(rf"^#{{1,{depth}}} ", text, flags=re.M)[0]
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("| `")
    ]


def names_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_the_architecture_tells_of_every_topic_what_the_code_does() -> None:
    """Key, events, partitions, retention and the group that reads it."""
    read_by = {topic.name: group for group, topic in topics.CONSUMED_BY.items()}
    told = {names_in(row[0])[0]: row[1:] for row in rows_of("docs/stores.md", "## Topics") if len(row) == 6}
    assert told.keys() == {topic.name for topic in topics.ALL}
    for topic in topics.ALL:
        key, values, partitions, kept, readers = told[topic.name]
        assert key.replace("`", "") == topic.key
        assert names_in(values) == [name_of(event) for event in topics.CARRIES.get(topic.name, ())]
        assert int(partitions) == topic.partitions
        days = topic.retention_ms // topics.DAY_MS
        assert kept == ("for ever" if topic.retention_ms == topics.FOR_EVER else f"{days} days")
        assert topic.name not in read_by or f"`{read_by[topic.name]}`" in readers


def test_the_architecture_lists_exactly_the_fields_there_are() -> None:
    told = {
        names_in(row[0])[0]: set(" ".join(names_in(row[1])).split())
        for row in rows_of("docs/stores.md", "## Topics")
        if len(row) == 2
    }
    assert told == {name_of(event): set(event.__struct_fields__) for event in EVENTS}


def test_the_architecture_lists_exactly_the_tables_and_functions_there_are() -> None:
    applied = "".join(
        file.read_text().partition("-- migrate: rollback")[0] for file in sorted(MIGRATIONS.glob("*.sql"))
    )
    tables = set(re.findall(r"CREATE TABLE (\w+)", applied)) - set(re.findall(r"DROP TABLE (\w+)", applied))
    assert {names_in(row[0])[0] for row in rows_of("docs/stores.md", "## Postgres")} == tables
    section = read("docs/stores.md").partition("## Postgres")[2].partition("\n## ")[0]
    functions = set(re.findall(r"CREATE (?:OR REPLACE )?FUNCTION (\w+)", applied))
    assert {name for name in functions if f"`{name}`" not in section} == set()


def test_the_page_for_analysts_knows_every_topic() -> None:
    """Where it shows what a wrong name is answered."""
    (told,) = re.findall(r"no topic '[\w-]+'; there are: (.*)", read("docs/data.md"))
    assert told.split(", ") == sorted(topic.name for topic in topics.ALL)


def test_samples_for_analysts_are_of_one_sale() -> None:
    """One day in all outputs of the page, but for examples of how a time is written."""
    shown = re.sub(
        r"(?s)write an offset.*?\n",
        "",
        "".join(re.findall(r"(?s)```.*?```", read("docs/data.md") + read("docs/sql.md"))),
    )
    assert len(set(re.findall(r"20\d\d-\d\d-\d\d", shown))) == 1


def test_the_page_for_operators_tells_every_default() -> None:
    rows = rows_of("docs/settings.md", "# Settings")
    assert rows
    for cells in rows:
        variables = names_in(cells[0])
        defaults = [default.strip("`") for default in cells[1].split(", ")]
        assert len(variables) == len(defaults), cells
        for variable, told in zip(variables, defaults, strict=True):
            assert told == default_of(variable), variable


def default_of(variable: str) -> str:
    default = Settings.model_fields[variable.lower()].default
    secret = default.get_secret_value() if isinstance(default, SecretStr) else default
    return str(secret) if secret not in ("", ()) else "none"


NUMBERS = [
    ("docs/architecture.md", f"once `MAX_HELD` orders of a product hold units ({int(default_of('MAX_HELD')):,};"),
    ("docs/architecture.md", f"once it owes Kafka {int(default_of('MAX_UNPUBLISHED')):,} orders"),
    ("docs/stores.md", f"More than {dead_letters.LIMIT:,} letters within a minute"),
    ("docs/architecture.md", f"At {acks.MAX_OPEN:,} open records a member takes no more until half of them"),
    ("docs/architecture.md", f"is the next batch, at most {order_stage.MAX_BATCH}."),
    ("docs/architecture.md", f"up to {int(default_of('WORKER_CONCURRENCY')):,} at once"),
    ("docs/stores.md", f"at most {pipeliner.MAX_TRIP} calls"),
    ("docs/limits.md", f"until `MAX_HELD` orders of the product hold units ({int(default_of('MAX_HELD')):,})"),
    ("docs/limits.md", f"at most {int(default_of('MAX_UNPUBLISHED')):,} orders (`MAX_UNPUBLISHED`)"),
    ("docs/operations.md", f"more than {dead_letters.LIMIT:,} dead letters in a minute"),
    ("docs/operations.md", f"`--max-quantity` (units one order may be of, {DEFAULT_MAX_QUANTITY})"),
    ("docs/operations.md", f"{MOST_CENTS // 100:,}.{MOST_CENTS % 100:02d} (2^53 cents)"),
    ("docs/operations.md", f"A server that hangs is named after {reach.ANSWER_S:.0f} s"),
    ("docs/runbook.md", f"read what it sent, {comebacks.PROCESSED_WITHIN_S:.0f} s at most"),
]


@pytest.mark.parametrize(("page", "text"), NUMBERS)
def test_numbers_that_pages_quote_are_the_codes(page: str, text: str) -> None:
    assert text in read(page)


def test_every_example_of_an_event_has_the_id_that_is_sent_with_it() -> None:
    """`epoch.version` with a stock, the status with an order: what a client comes back with."""
    described = yaml.safe_load(read("schemas/openapi.yaml"))
    streams = [described["paths"][path]["get"]["responses"]["200"] for path in ("/sse/stock/{id}", "/sse/order/{id}")]
    examples = [stream["content"]["text/event-stream"]["example"] for stream in streams]
    blocks = "\n\n".join([*re.findall(r"^```\w*\n(.*?)^```$", read("docs/api.md"), re.M | re.S), *examples]).split(
        "\n\n"
    )
    events = [block for block in blocks if re.search(r"^data: ", block, re.M)]
    assert len(events) == 5
    for event in events:
        fields = dict(line.split(": ", 1) for line in event.strip().splitlines())
        data = json.loads(fields["data"])
        assert re.fullmatch(r"\d+\.\d+", fields["id"]) if "stock" in data else fields["id"] == data["status"], event


DEFAULTS_STATED_IN = ("Makefile", "compose.yaml", "deploy.sh", "infra/deploy/k8s/gateway.yaml")


@pytest.mark.parametrize("name", ["api_workers", "order_workers", "payment_workers"])
def test_a_size_that_other_files_default_is_the_settings_default(name: str) -> None:
    """Where a file states a default of its own, it is the same as in infra/settings.py."""
    default = str(Settings.model_fields[name].default)
    stated = re.compile(rf'{name.upper()}(?:=|:-|=\$\{{{name.upper()}:-|, value: ")(\d+)')
    found = {file: set(stated.findall((ROOT / file).read_text())) for file in DEFAULTS_STATED_IN}
    assert set().union(*found.values()) == {default}, found
