"""The OpenAPI document and the gateway say the same: routes, codes, examples, and every answer to thousands of odd requests."""

import asyncio
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import MagicMock

import hypothesis
import jsonschema
import orjson
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st
from openapi_spec_validator import validate
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi import checks

from gateway.app import make_gateway
from gateway.http.problems import KINDS, Problem
from gateway.pages.api_docs import BUNDLED, OWN, document
from infra.settings import SigningSettings
from sale.accounts.tokens import sign
from sale.books import keys
from schemas.ids import new_order_id

from .gateway_fixtures import UNKNOWN_ORDER, GatewayClient, gateway, gateway_on, settings

__all__ = ["gateway", "settings"]

Json = dict[str, Any]
Operation = APIOperation[Any, Any, Any, Any]
AnyCase = Case[Any]

METHODS = {"get", "post", "put", "patch", "delete", "options", "trace"}
SEED = int(os.environ.get("THRONES_FUZZ_SEED", "20261122"))  # printed by a failing test; the same seed asks the same
EXAMPLES = 30  # an operation, of well-formed and of malformed requests each
EXAMPLES_WITHOUT_INPUT = 3
ANSWER_WITHIN_S = 5.0
PASSWORD = "valar morghulis"
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def described() -> Json:
    loaded: Json = orjson.loads(document())
    return loaded


@pytest.fixture(scope="module")
def operations(described: Json) -> dict[tuple[str, str], Json]:
    """By (method, path)."""
    return {
        (method.upper(), path): operation
        for path, item in described["paths"].items()
        for method, operation in item.items()
        if method in METHODS
    }


def test_the_document_is_valid_openapi(described: Json) -> None:
    assert described["openapi"].startswith("3.1.")
    validate(described)


def test_routes_and_document_are_equal(settings: SigningSettings, operations: dict[tuple[str, str], Json]) -> None:
    """Each route is described and each description is a route; HEAD goes with every GET that is not a stream."""
    app = make_gateway(settings, *(MagicMock() for _ in range(4))).app
    routes = {(route.method, route.resource.canonical) for route in app.router.routes() if route.resource}
    streams = {path for (_, path), operation in operations.items() if "text/event-stream" in str(operation)}
    heads = {("HEAD", path) for method, path in operations if method == "GET" and path not in streams}
    assert routes == operations.keys() | heads


def test_every_problem_of_the_gateway_is_described_and_no_other(described: Json) -> None:
    """Codes, their statuses and texts, and Retry-After, are those of the gateway's table."""
    known: dict[int, set[str]] = {Problem(code).answer().status: set() for code in KINDS}
    for code, kind in KINDS.items():
        known[kind.status].add(orjson.loads(Problem(code).body())["code"])
    codes = described["components"]["schemas"]["ProblemCode"]["enum"]
    assert sorted(codes) == sorted(set().union(*known.values()))
    for name, response in described["components"]["responses"].items():
        content = response["content"]["application/problem+json"]
        for example in _examples(content):
            status = example["status"]
            assert set(response["x-codes"]) <= known[status], name
            assert example["code"] in response["x-codes"], name
            assert ("Retry-After" in response.get("headers", {})) == (status in (429, 503)), name
            texts = [orjson.loads(Problem(code).body()) for code, kind in KINDS.items() if kind.status == status]
            assert {**example, "orderId": None, "opensAt": None} in [
                {**text, "orderId": None, "opensAt": None} for text in texts
            ], name


def test_every_answer_that_is_a_problem_lists_its_codes(
    described: Json, operations: dict[tuple[str, str], Json]
) -> None:
    """`x-codes`, and not a narrower schema: generators drop a response that narrows a member of Problem."""
    for (method, path), operation in operations.items():
        for status, response in operation["responses"].items():
            content = _resolved(described, response).get("content", {})
            if problem := content.get("application/problem+json"):
                assert problem["schema"] == {"$ref": "#/components/schemas/Problem"}, (method, path, status)
                assert _resolved(described, response)["x-codes"], (method, path, status)


def test_a_listed_product_differs_from_a_product_in_its_stock_alone(described: Json) -> None:
    """Both are written out, because generators drop a schema that narrows another."""
    listed, product = (described["components"]["schemas"][name] for name in ("ListedProduct", "Product"))
    assert listed["required"] == product["required"]
    differing = {name for name in product["properties"] if product["properties"][name] != listed["properties"][name]}
    assert (differing, product["properties"].keys()) == ({"stock"}, listed["properties"].keys())


def test_every_name_in_the_document_is_one_word(described: Json) -> None:
    """A text with a comma that somebody forgot to quote becomes a second member of its mapping."""
    odd = [name for name in _names(described) if " " in name]
    assert odd == []


def test_examples_are_true_to_their_schemas(described: Json) -> None:
    """Wherever an example stands."""
    seen = 0
    for schema, example in _all_examples(described):
        _validator(described, schema).validate(example)
        seen += 1
    assert seen > 30


async def test_the_document_and_its_page_are_served(gateway: GatewayClient) -> None:
    """The page needs nothing from elsewhere, and its policy would not let it."""
    answer = await gateway.ask("GET", "/openapi.json")
    assert (answer.status, answer.body) == (200, document())
    page = await gateway.ask("GET", "/docs")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert not re.search(r"https?:|\*|unsafe", policy)
    linked = set(re.findall(rb'(?:src|href)="([^"]+)"', page.body))
    assert linked == {b"/openapi.json", *(f"/docs/{name}".encode() for name in (*OWN, *BUNDLED))}
    for name in (*OWN, *BUNDLED):
        file = await gateway.ask("GET", f"/docs/{name}")
        assert (file.status, file.headers["X-Content-Type-Options"]) == (200, "nosniff")
        assert name in BUNDLED or b"//" not in re.sub(rb"^//.*|; //.*|, //.*", b"", file.body, flags=re.M)
    for odd in ("docs.html", "..%2fapp.py", "%2e%2e%2fapp.py", "swagger-ui-bundle.js%00"):
        assert (await gateway.ask("GET", f"/docs/{odd}")).is_problem(404, "not_found"), odd


@dataclass(frozen=True)
class Target:
    """A running gateway, and ids that mean something there."""

    url: str
    email: str
    token: str
    operator: str
    products: tuple[int, ...]
    orders: tuple[str, ...]


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings(
    "ignore:Do not use the `random` module:hypothesis.errors.HypothesisDeprecationWarning"
)  # theirs
async def test_no_request_gets_an_undocumented_answer(settings: SigningSettings, described: Json) -> None:
    """Well-formed and malformed requests, with a token and without: every answer has a documented status, content type,
    headers and body, none is a 500; malformed ones are refused, and without a token nothing is given away."""
    changes = {"bcrypt_cost": 4, "trusted_proxies": ("127.0.0.1/32",)}
    async with gateway_on(settings, **changes) as gateway:
        target = await _target(gateway)
        print(f"THRONES_FUZZ_SEED={SEED}")
        answers = await asyncio.to_thread(_fuzz, described, target)
    assert {operation for operation, status in answers if status < 300} == {operation for operation, _ in answers}
    print(*(f"{operation} {status}: {count}" for (operation, status), count in sorted(answers.items())), sep="\n")


async def _target(gateway: GatewayClient) -> Target:
    """Products in every state, an order under way and one at its end."""
    now, hour = datetime.now(UTC), timedelta(hours=1)
    products = await asyncio.gather(
        gateway.product(1_000_000),
        gateway.product(1),
        gateway.product(100_000, per_user_limit=1),
        gateway.product(10, opens_at=now + hour),
        gateway.product(10, opens_at=now - hour, closes_at=now - hour / 2),
    )
    somebody = {"name": "Arya", "email": f"{new_order_id()}@winterfell.example", "password": PASSWORD}
    gateway.user_id = (await gateway.ask("POST", "/api/auth/register", json=somebody)).json["user"]["id"]
    gateway.token = sign(gateway.user_id, "user", gateway.settings)
    orders = [(await gateway.buy({"productId": products[0]})).json["orderId"] for _ in range(2)]
    await gateway.to.redis.hset(keys.order(orders[1]), "status", "confirmed")
    await gateway.verify_books()
    return Target(
        gateway.url,
        somebody["email"],
        gateway.token,
        (await gateway.operator()).token,
        tuple(products),
        (orders[1], UNKNOWN_ORDER, new_order_id()),
    )


def _fuzz(described: Json, target: Target) -> Counter[tuple[str, int]]:
    """How often each operation answered with each status. In a thread: the gateway lives in the test's event loop."""
    answers: Counter[tuple[str, int]] = Counter()
    with requests.Session() as session:
        for mode in GenerationMode.POSITIVE, GenerationMode.NEGATIVE:
            schema = schemathesis.openapi.from_dict(_closed(described, mode))
            schema.config.max_stream_events = 1
            for operation in (result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)):
                of_role = target.operator if operation.path.startswith("/api/ops/") else target.token
                for token in of_role, None:
                    _ask(operation, mode, target, session, token, answers)
    return answers


def _ask(
    operation: Operation,
    mode: GenerationMode,
    target: Target,
    session: requests.Session,
    token: str | None,
    answers: Counter[tuple[str, int]],
) -> None:
    has_input = bool(operation.body) or any(operation.iter_parameters())
    if mode is GenerationMode.NEGATIVE and not has_input:
        return
    plans = hypothesis.settings(
        max_examples=EXAMPLES if has_input else EXAMPLES_WITHOUT_INPUT,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )

    @hypothesis.seed(SEED)
    @plans
    @given(case=operation.as_strategy(generation_mode=mode), choice=st.integers(0, 2**16))
    def probe(case: AnyCase, choice: int) -> None:
        if mode is GenerationMode.POSITIVE:
            _aim(case, choice, target)
        headers = {"X-Forwarded-For": f"10.{choice % 251}.{choice // 251 % 251}.1"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        answer = case.call_and_validate(
            base_url=target.url,
            session=session,
            headers=headers,
            checks=[*_checks(operation, mode, token), events_conform, problems_conform],
            timeout=ANSWER_WITHIN_S,
        )
        answers[operation.label, answer.status_code] += 1

    probe()


def _checks(operation: Operation, mode: GenerationMode, token: str | None) -> list[Any]:
    if mode is GenerationMode.NEGATIVE:
        return [*CHECKS, checks.negative_data_rejection]
    more = [] if token is None else [checks.ignored_auth]
    if not operation.body:  # a schema can neither count a password's bytes nor refuse 1.0 as an integer
        more.append(checks.positive_data_acceptance)
    return CHECKS + more


def events_conform(_ctx: object, response: Any, case: AnyCase) -> None:
    """The data of every event, and its type, are those that the document describes."""
    if response.headers.get("content-type", [""])[0].startswith("text/event-stream"):
        name = "OrderEvent" if "order" in case.path else "StockEvent"
        schema = {"$ref": f"#/components/schemas/{name}"}
        events = re.findall(r"(?:^|\n)data: (.*)\n\n", response.text)
        assert events, "a stream begins with the present state"
        for event in events:
            _validator(case.operation.schema.raw_schema, schema).validate(orjson.loads(event))
        assert ("event: status\n" in response.text) == (name == "OrderEvent")


def problems_conform(_ctx: object, response: Any, case: AnyCase) -> None:
    """A problem has the answer's status, and one of the codes that the document lists for it there."""
    if response.headers.get("content-type", [""])[0] == "application/problem+json":
        schema = case.operation.schema.raw_schema
        item = schema["paths"][case.operation.path][case.method.lower()]["responses"]
        listed = _resolved(schema, item[str(response.status_code)])["x-codes"]
        problem = orjson.loads(response.content)
        assert problem["status"] == response.status_code
        assert problem["code"] in listed, problem


def _aim(case: AnyCase, choice: int, target: Target) -> None:
    """Two times in three the request is about something that exists."""
    if choice % 3 == 0:
        return
    if "id" in case.path_parameters:
        ids: tuple[object, ...] = target.orders if "order" in case.path else target.products
        case.path_parameters["id"] = ids[choice // 3 % len(ids)]
    if isinstance(case.body, dict) and "productId" in case.body:
        case.body["productId"] = target.products[choice // 3 % len(target.products)]
    if isinstance(case.body, dict) and "password" in case.body:
        case.body["password"] = PASSWORD
        if case.path == "/api/auth/register" and choice % 3 == 1:
            case.body |= {"name": "Arya", "email": f"{choice}@winterfell.example"}
        if case.path == "/api/auth/login":
            case.body["email"] = target.email


def _closed(described: Json, mode: GenerationMode) -> Json:
    """The document with answers that may hold nothing but what it names. For clients it stays open to additions."""
    closed: Json = orjson.loads(orjson.dumps(described))
    for schema in closed["components"]["schemas"].values():
        if schema.get("type") == "object":
            schema.setdefault("additionalProperties", False)
    for path in "/sse/stock/{id}", "/sse/order/{id}":  # schemathesis takes a stream's schema for that of one event
        closed["paths"][path]["get"]["responses"]["200"]["content"]["text/event-stream"]["schema"] = {}
    if mode is GenerationMode.NEGATIVE:  # a missing token is no malformed request here: tokens are put on by `_ask`
        for item in closed["paths"].values():
            for operation in item.values():
                if isinstance(operation, dict):
                    operation["security"] = []
    return closed


def _validator(described: Json, schema: Json) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(
        {"components": described["components"], **schema},
        format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER,
    )


def _resolved(described: Json, node: Json) -> Json:
    """The node, or what its `$ref` points at."""
    if "$ref" not in node:
        return node
    found: Json = described
    for part in node["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    return found


def _names(node: Any) -> Iterator[str]:
    """The names of all members, examples aside."""
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        yield from _names(child)
    if isinstance(node, dict):
        yield from (name for name in node if isinstance(name, str))


def _all_examples(node: Any) -> Iterator[tuple[Json, Any]]:
    """Every (schema, example): in schemas, and beside them in contents, parameters and headers."""
    if isinstance(node, list):
        for item in node:
            yield from _all_examples(item)
    elif isinstance(node, dict):
        if isinstance(node.get("schema"), dict):
            for example in _examples(node):
                yield node["schema"], example
        elif isinstance(node.get("examples"), list):
            for example in node["examples"]:
                yield node, example
        for name, item in node.items():
            if name not in ("example", "examples"):
                yield from _all_examples(item)


def _examples(node: Json) -> list[Any]:
    named = [example["value"] for example in node.get("examples", {}).values()]
    return named + ([node["example"]] if "example" in node else [])
