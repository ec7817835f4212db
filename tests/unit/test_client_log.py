"""What a client log says of orders and of wishes, where most answers name no order."""

import json
from pathlib import Path

import pytest

from consumers.audit.client_log import read_client_log
from infra.inventory.keys import key_hash


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
    assert seen.unknown_wishes == {(2, key_hash("b")), (5, key_hash("d"))}
    assert seen.refused_wishes == {(3, key_hash("c"))}
    assert seen.doubled_wishes == {}


def test_one_key_that_was_told_two_orders_stands_out(log: Path) -> None:
    assert read_client_log(log).doubled_wishes == {(1, key_hash("a")): {"o1", "o9"}}
