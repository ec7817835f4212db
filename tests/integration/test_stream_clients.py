"""What clients of others make of our event streams: exactly our events, and nothing of the comments between them."""

import asyncio
import json
from pathlib import Path

import pytest

from infra.settings import SigningSettings

from .foreign_clients import CLIENTS, PREPARED_WITHIN_S, foreign_python
from .gateway_fixtures import gateway_on, settings

__all__ = ["foreign_python", "settings"]


@pytest.mark.timeout(PREPARED_WITHIN_S + 60)
async def test_httpx_sse_sees_our_events_and_nothing_else(
    settings: SigningSettings, foreign_python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes every blank line for the end of an event, so a keep-alive comment must not be followed by one."""
    monkeypatch.setattr("gateway.stock_stream.KEEP_ALIVE_EVERY_S", 0.1)
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
