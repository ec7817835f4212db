"""Clients of others: those made by generators from /openapi.json buy from a real gateway, and httpx-sse reads its streams.

They are fetched into temporary folders.
"""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from gateway.pages.api_docs import document
from infra.settings import SigningSettings
from schemas.ids import new_order_id

from .foreign_clients import CLIENTS, PREPARED_WITHIN_S, foreign_python, needed, run
from .gateway_fixtures import GatewayClient, gateway, gateway_on, settings

__all__ = ["foreign_python", "gateway", "settings"]


async def bought(gateway: GatewayClient, *client: str | Path, cwd: Path) -> None:
    """The client buys the one unit there is, follows its order, and understands why it gets no more."""
    product = await gateway.product(1)
    output = await run(*client, gateway.url, str(product), f"{new_order_id()}@winterfell.example", cwd=cwd)
    learnt: dict[str, Any] = json.loads(output.splitlines()[-1])
    entries: list[Any] = await gateway.to.redis.hkeys(f"held:{{p{product}}}")
    [order_id] = [key.decode() for key in entries]
    assert learnt == {"stock": 1, "quantity": 1, "orderId": order_id, "refused": "sold_out"}


@pytest.mark.timeout(PREPARED_WITHIN_S + 60)
async def test_a_python_client_is_generated_whole_and_buys(
    gateway: GatewayClient, foreign_python: Path, tmp_path: Path
) -> None:
    """openapi-python-client tells what it leaves out; it leaves out nothing."""
    (tmp_path / "openapi.json").write_bytes(document())
    generate = ("-m", "openapi_python_client", "generate", "--config", CLIENTS / "generator.yaml", "--meta", "none")
    into = ("--path", "openapi.json", "--output-path", "backend_of_thrones_client")
    said = await run(foreign_python, *generate, *into, "--fail-on-warning", cwd=tmp_path)
    assert "arning" not in said, said
    shutil.copy(CLIENTS / "buy.py", tmp_path)
    await bought(gateway, foreign_python, "buy.py", cwd=tmp_path)


@pytest.mark.timeout(PREPARED_WITHIN_S + 60)
async def test_a_typescript_client_is_generated_compiles_and_buys(gateway: GatewayClient, tmp_path: Path) -> None:
    """openapi-typescript's types, openapi-fetch and the strict compiler: a quantity need not be given."""
    (tmp_path / "openapi.json").write_bytes(document())
    for name in ("package.json", "tsconfig.json", "buy.ts"):
        shutil.copy(CLIENTS / name, tmp_path)
    await run(
        needed("npm"), "install", "--no-audit", "--no-fund", "--no-package-lock", "--prefer-offline", cwd=tmp_path
    )
    tools = tmp_path / "node_modules" / ".bin"
    await run(tools / "openapi-typescript", "openapi.json", "-o", "schema.d.ts", cwd=tmp_path)
    await run(tools / "tsc", cwd=tmp_path)
    await bought(gateway, needed("node"), "buy.js", cwd=tmp_path)


@pytest.mark.timeout(PREPARED_WITHIN_S + 60)
async def test_httpx_sse_sees_our_events_and_nothing_else(
    settings: SigningSettings, foreign_python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes every blank line for the end of an event, so a keep-alive comment must not be followed by one."""
    monkeypatch.setattr("gateway.watching.stock_stream.KEEP_ALIVE_INTERVAL_S", 0.1)
    async with gateway_on(settings) as gateway:
        product = await gateway.product(9)
        command = (foreign_python, CLIENTS / "watch.py", f"{gateway.url}/sse/stock/{product}", 2)
        watching = await asyncio.create_subprocess_exec(*map(str, command), stdout=asyncio.subprocess.PIPE)
        assert watching.stdout is not None
        first = await watching.stdout.readline()
        await asyncio.sleep(1.0)  # ten comments
        await gateway.buy({"productId": product})
        rest = await watching.stdout.read()
        assert await watching.wait() == 0
    events = [json.loads(line) for line in (first + rest).splitlines()]
    assert [(kind, id_, json.loads(data)) for kind, id_, data in events] == [
        ("message", "1.0", {"productId": product, "stock": 9}),
        ("message", "1.1", {"productId": product, "stock": 8}),
    ]
