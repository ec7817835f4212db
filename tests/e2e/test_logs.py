"""What a stack has logged after everything else was done to it: lines for machines, orders by their id, and no secret."""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from infra.local.targets import SERVERS

from .stack import Stack

OURS = ("gateway", "order-stage", "payment-stage", "projector", "relay", "reconciler", "payment-gateway", "supervisor")
JWT = re.compile(r"\beyJ[\w-]{10,}\.")
TICKET = re.compile(r"ticket=[\w-]")
WRONG = "valar-morghulis-valar-dohaeris"


def lines(stack: Stack) -> Iterator[tuple[str, str]]:
    """(file, line) of everything that was logged, rotated files included."""
    for log in sorted((stack.state_dir / "logs").iterdir()):
        for line in log.read_text(errors="replace").splitlines():
            yield log.name, line


def secrets(stack: Stack) -> dict[str, str]:
    """By name: what this stack keeps to itself, and a password that a test has sent."""
    kept: dict[str, Any] = json.loads((stack.state_dir / "stack.json").read_text())
    return {
        **{name: kept[name] for name in ("jwt_secret", "postgres_password")},
        "bearer token": json.loads(stack.tokens.read_text())[0],
        "password": WRONG,
    }


def wrong_login(stack: Stack) -> None:
    body = json.dumps({"email": "jaqen@braavos.example", "password": WRONG}).encode()
    request = urllib.request.Request(
        f"{stack.url}/api/auth/login", data=body, headers={"Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    assert refused.value.code == 401
    refused.value.close()


@pytest.mark.timeout(300)  # the stack may have to be started first
def test_logs_hold_no_password_token_or_secret_and_every_failed_login(stack: Stack) -> None:
    """Runs after all other tests (conftest.py), so what they made the processes log is looked through."""
    wrong_login(stack)
    kept = secrets(stack)
    assert all(kept.values())
    found = list(lines(stack))
    for name, secret in kept.items():
        assert [file for file, line in found if secret in line] == [], name
    assert [(file, line[:200]) for file, line in found if JWT.search(line) or TICKET.search(line)] == []
    assert any("failed login" in line for _, line in found)


def test_lines_are_json_and_say_which_process_wrote_them(stack: Stack) -> None:
    """Those of our own processes; a traceback or a library's print would stand between them."""
    roles = set()
    for file, line in lines(stack):
        if file.startswith(SERVERS) or not line.strip() or not file.startswith(OURS):
            continue
        entry = json.loads(line)
        assert {"event", "level", "timestamp"} <= entry.keys(), line
        roles.add(entry.get("role"))
        assert "order" not in entry, "an order's id is `order_id` on every line"
    assert {"gateway", "order-stage", "relay", "supervisor"} <= roles
