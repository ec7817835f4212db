"""What operators' commands promise to outside tools, asked of a whole stack."""

import json
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from .stack import GOOD_WEATHER, Stack

ENV = {
    "KAFKA_BOOTSTRAP_SERVERS", "REDIS_URL", "POSTGRES_DSN", "DB_HOST", "DB_PORT", "POSTGRES_USER", "POSTGRES_PASSWORD",
    "POSTGRES_DB", "PAYMENT_GATEWAY_URL", "PORT", "JWT_SECRET",
}  # fmt: skip
ROLES = {
    "gateway", "order-stage", "payment-stage", "relay", "projector", "reconciler", "kafka", "redis", "postgres",
    "payment-gateway", "supervisor",
}  # fmt: skip


def buy(stack: Stack, product: int, token: str, quantity: int = 1) -> int:
    """Status of the answer, on a connection of its own."""
    request = urllib.request.Request(
        f"{stack.url}/api/order/buy-flash",
        json.dumps({"productId": product, "quantity": quantity}).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {token}"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return int(answer.status)


def test_outside_tools_are_told_where_everything_is(stack: Stack) -> None:
    """`env` as lines and as JSON, `status` with a row for each process and each gateway worker."""
    env = stack.env()
    assert env.keys() == ENV
    lines = dict(line.split("=", 1) for line in stack.thrones("env").stdout.splitlines())
    assert lines == env
    rows: list[dict[str, Any]] = json.loads(stack.thrones("status", "--json").stdout)
    assert {row["role"] for row in rows} == ROLES, stack.seen(*ROLES - {row["role"] for row in rows})
    assert all(row.keys() == {"role", "member", "pid", "port"} for row in rows)
    gateways = [row for row in rows if row["role"] == "gateway"]
    assert [row["port"] for row in gateways] == [int(env["PORT"])] * 2
    assert len({row["pid"] for row in gateways}) == 2
    assert all(row["port"] is None or row["port"] > 0 for row in rows)


def test_deploying_again_changes_nothing_that_was_sold(stack: Stack) -> None:
    """Product 1 is the reference's, made once; its stock is never loaded a second time."""
    stack.set_weather(GOOD_WEATHER)
    assert stack.thrones("deploy").returncode == 0
    first = stack.get("/api/products/1")
    assert (first["name"], first["price"], first["currency"]) == ("iPhone 15 Pro - Flash Sale", "999.99", "USD")
    assert first["stock"] <= 1_000
    token = json.loads(stack.tokens.read_text())[0]
    assert buy(stack, 1, token, quantity=3) == 202
    assert stack.thrones("deploy").returncode == 0
    assert stack.get("/api/products/1")["stock"] == first["stock"] - 3


def test_a_product_is_buyable_on_every_worker_when_its_command_returns_and_its_id_is_taken(stack: Stack) -> None:
    """Whichever worker accepts the connection; an id that exists is refused; window and limit are as they were given."""
    tokens = json.loads(stack.tokens.read_text())
    product = stack.new_product(100)
    assert [buy(stack, product, token) for token in tokens[:20]] == [202] * 20
    again = stack.thrones("product", "create", "--id", str(product), "--name", "x", "--price", "1.00", "--stock", "5")
    assert again.returncode != 0
    assert str(product) in again.stdout
    opens_at = (datetime.now(UTC) + timedelta(days=1)).replace(microsecond=0)
    later = stack.new_product(5, "--opens-at", opens_at.isoformat(), "--per-user-limit", "2", "--currency", "EUR")
    shown = stack.get(f"/api/products/{later}")
    assert (shown["opensAt"], shown["currency"]) == (f"{opens_at:%Y-%m-%dT%H:%M:%S}.000Z", "EUR")


def test_tokens_are_made_in_bulk_and_again(stack: Stack, tmp_path: Path) -> None:
    """A JSON array; asked twice, the second is as good as the first."""
    for name in ("first.json", "second.json"):
        assert stack.thrones("tokens", "--users", "500", "--out", str(tmp_path / name)).returncode == 0
        tokens = json.loads((tmp_path / name).read_text())
        assert len(set(tokens)) == 500
        request = urllib.request.Request(f"{stack.url}/api/auth/me", headers={"Authorization": f"Bearer {tokens[-1]}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.status == 200
