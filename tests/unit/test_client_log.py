"""What a client log says of orders and of wishes, where most answers name no order."""

import json
from pathlib import Path

import pytest

from consumers.audit.client_log import STATUS_OF, read_client_log
from gateway.http.problems import KINDS
from sale.books.key_record import key_hash


@pytest.fixture
def log(tmp_path: Path) -> Path:
    lines = [
        {"outcome": "A", "user": 1, "key": "a", "order": "o1", "product": 7},
        {"outcome": "U", "user": 2, "key": "b", "order": None, "product": 7},
        {"outcome": "R", "user": 3, "key": "c", "order": None, "product": 7},
        {"outcome": "R", "user": 1, "key": "a", "order": None, "product": 7},  # refused once, accepted in the end
        {"outcome": "R", "user": 4, "key": None, "order": None, "product": 7},
        {"outcome": "U", "user": 5, "key": "d", "order": "o5", "product": 7, "status": 504, "latency_ms": 1.5},
        {"outcome": "A", "user": 1, "key": "a", "order": "o9", "product": 8},
    ]
    path = tmp_path / "clients.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


def test_orders_are_known_by_id_and_wishes_by_user_and_key(log: Path) -> None:
    """A wish that was refused once and accepted later is an accepted one; without a key there is no refused wish."""
    seen = read_client_log(log, product=7)
    assert seen.accepted == {"o1"}
    assert seen.unknown == {"o5"}
    assert not seen.refused
    assert seen.unknown_keys == {(2, key_hash("b")), (5, key_hash("d"))}
    assert seen.refused_keys == {(3, key_hash("c"))}
    assert seen.doubled_keys == {}


def test_one_key_that_was_told_two_orders_stands_out(log: Path) -> None:
    assert read_client_log(log).doubled_keys == {(1, key_hash("a")): {"o1", "o9"}}


def complaints(tmp_path: Path, **answer: object) -> str:
    path = tmp_path / "clients.jsonl"
    path.write_text(json.dumps({"outcome": "R", "user": 1, "key": "a", "order": None, "product": 7, **answer}))
    return "\n".join(read_client_log(path).complaints)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"status": 409, "code": "sold_out"}, ""),
        ({"status": 503, "code": "busy", "retry_after": "2"}, ""),
        ({"status": 0, "code": "reset", "outcome": "U"}, ""),
        ({"status": 500, "code": "internal"}, "undocumented answer: user 1 got 500 internal"),
        ({"status": 409, "code": "busy"}, "undocumented answer: user 1 got 409 busy"),
        ({"status": 404, "code": ""}, "undocumented answer: user 1 got 404"),
        ({"status": 503, "code": "busy", "retry_after": None}, "no Retry-After: user 1 got 503 busy"),
        ({"status": 409, "code": "sold_out", "latency_ms": 5_200.0}, "later than 5 s: user 1 waited 5.2 s"),
        ({"status": 0, "code": "timeout", "outcome": "U", "latency_ms": 8_000.0}, "later than 5 s"),
        ({"status": 0, "code": "unreadable", "outcome": "U"}, "no HTTP"),
    ],
)
def test_answers_that_no_client_should_see_are_named(tmp_path: Path, answer: dict[str, object], told: str) -> None:
    """I11; a log that says nothing of codes and times is not checked for them."""
    found = complaints(tmp_path, **answer)
    assert told in found
    assert bool(told) == bool(found)


def test_the_audit_knows_the_codes_that_the_gateway_gives() -> None:
    given = {code: kind.status for code, kind in KINDS.items() if code != "invalid_credentials"}
    assert given == STATUS_OF


def test_what_was_accepted_keeps_the_body_that_was_asked_for(log: Path) -> None:
    log.write_text('{"outcome": "A", "user": 1, "key": "a", "order": "o1", "product": 7, "quantity": 2}\n')
    assert read_client_log(log).quantities == {"o1": {2}}
