"""What the documents say in, what the code is in: no link leads nowhere, and no table has missed a change."""

import re
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from gateway.app import make_gateway
from gateway.problems import KINDS
from infra.inventory.pipeliner import SCRIPTS
from infra.settings import Settings, SigningSettings
from schemas import topics

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


def test_every_promise_names_the_tests_that_would_break_it() -> None:
    """Each row of the README's table links to at least one test."""
    table = read("README.md").partition("## Promises")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert rows
    assert all("](tests/" in row for row in rows)


def test_every_feature_of_the_reference_has_its_answer_here() -> None:
    table = read("README.md").split("| The reference | Here |\n|---|---|\n")[1]
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


def test_the_page_for_operators_lists_exactly_the_settings_there_are() -> None:
    """Every environment variable that a process reads."""
    table = read("docs/operations.md").partition("## Settings")[2]
    told = {
        name
        for line in table.splitlines()
        for name in re.findall(r"`([A-Z][A-Z_]+)`", line.split("|")[1:2][0] if "|" in line else "")
    }
    assert told == {name.upper() for name in Settings.model_fields}


def test_the_architecture_lists_exactly_the_scripts_and_topics_there_are() -> None:
    """The tables of scripts and topics, topics with their partitions."""
    page = read("docs/architecture.md")
    assert set(re.findall(r"^\| \[`(\w+)\.lua`]", page, re.M)) == SCRIPTS.keys()
    told = set(re.findall(r"^\| `([\w-]+)` \|[^|]*\|[^|]*\| (\d+) \|", page, re.M))
    assert told == {(topic.name, str(topic.partitions)) for topic in topics.ALL}
