"""Clients made by generators from /openapi.json: each is made without a complaint, and buys from a real gateway.

The generators are fetched into temporary folders; a tool that is missing fails the test.
"""

import asyncio
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.api_docs import document
from schemas.ids import new_order_id

from .gateway_fixtures import GatewayClient, gateway, settings

__all__ = ["gateway", "settings"]

CLIENTS = Path(__file__).parent.parent / "clients"
PREPARED_WITHIN_S = 240  # generators are fetched by pip and npm


def needed(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        pytest.fail(f"{program} is needed to make a TypeScript client: apt-get install nodejs npm", pytrace=False)
    return found


async def run(*command: str | Path, cwd: Path) -> str:
    """The command's output; fails with all of it where the command fails."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command), cwd=cwd, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output = (await process.communicate())[0].decode()
    assert process.returncode == 0, f"{' '.join(map(str, command))}\n{output}"
    return output


async def bought(gateway: GatewayClient, *client: str | Path, cwd: Path) -> None:
    """The client buys the one unit there is, follows its order, and understands why it gets no more."""
    product = await gateway.product(1)
    output = await run(*client, gateway.url, str(product), f"{new_order_id()}@winterfell.example", cwd=cwd)
    learnt: dict[str, Any] = json.loads(output.splitlines()[-1])
    [order_id] = [key.decode() for key in await gateway.to.redis.hkeys(f"held:{{p{product}}}")]
    assert learnt == {"stock": 1, "quantity": 1, "orderId": order_id, "refused": "sold_out"}


@pytest.mark.timeout(PREPARED_WITHIN_S + 60)
async def test_a_python_client_is_generated_whole_and_buys(gateway: GatewayClient, tmp_path: Path) -> None:
    """openapi-python-client tells what it leaves out; it leaves out nothing."""
    (tmp_path / "openapi.json").write_bytes(document())
    await run(sys.executable, "-m", "venv", "--without-pip", "tools", cwd=tmp_path)
    python = tmp_path / "tools" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    await run(*pip, "install", "--quiet", "-r", CLIENTS / "requirements.txt", cwd=tmp_path)
    generate = ("-m", "openapi_python_client", "generate", "--config", CLIENTS / "generator.yaml", "--meta", "none")
    into = ("--path", "openapi.json", "--output-path", "backend_of_thrones_client")
    said = await run(python, *generate, *into, "--fail-on-warning", cwd=tmp_path)
    assert "arning" not in said, said
    shutil.copy(CLIENTS / "buy.py", tmp_path)
    await bought(gateway, python, "buy.py", cwd=tmp_path)


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
