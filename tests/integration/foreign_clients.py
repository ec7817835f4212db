"""Clients that others have made, each fetched once a session into a temporary folder, and run; a tool that is missing fails the test."""

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.fixture(scope="session")
def foreign_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with the packages of tests/clients/requirements.txt, which do not agree with our pins."""
    folder = tmp_path_factory.mktemp("foreign-python")
    _run_now(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--disable-pip-version-check")
    _run_now(*pip, "-r", CLIENTS / "requirements.txt")
    return python


def _run_now(*command: str | Path) -> None:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=PREPARED_WITHIN_S, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
