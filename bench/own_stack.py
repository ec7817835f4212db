"""The local stack as an outside tool sees it: its URL, its commands, bearer tokens. It imports none of the stack's code."""

import fcntl
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import urlsafe_b64decode
from pathlib import Path
from typing import Any

from infra.local.config import load_config
from infra.supervision.place import REPOSITORY, default_state_dir

COMMAND_TIMEOUT_S = 180.0
HTTP_TIMEOUT_S = 10.0
FRESH_FOR_S = 7_200.0  # tokens that expire sooner are replaced: a soak takes half an hour


class OwnStackFailed(Exception):
    """A `thrones` command failed; the text is its output."""


def own_url() -> str:
    """The URL of the local stack's gateway; without a stack on PORT, else 8080."""
    config = load_config(default_state_dir())
    port = config.port if config else os.environ.get("PORT", "8080")
    return f"http://127.0.0.1:{port}"


def thrones(*arguments: str, timeout_s: float = COMMAND_TIMEOUT_S, failing: bool = False) -> str:
    """The output of a command. Raises OwnStackFailed if it fails, unless `failing` allows that."""
    done = subprocess.run(
        [sys.executable, "-m", "thrones", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "THRONES_STATE_DIR": str(default_state_dir())},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if done.returncode and not (failing and done.stdout):
        raise OwnStackFailed(f"thrones {arguments[0]}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def get(url: str, token: str | None = None) -> tuple[int, Any]:
    """Status and JSON body (None if there is none). Raises OSError if there is no answer."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=HTTP_TIMEOUT_S) as answer:  # noqa: S310 # http(s), by --host
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code, None


def ensure_tokens(users: int, url: str) -> Path:
    """The file of bearer tokens for the local stack. It is made if missing, too small, too old or from another stack.

    Several load generators may call it at once; one of them makes the file.
    """
    folder = default_state_dir() / "load"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "tokens.json"
    with (folder / "tokens.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _are_good(file, users, url):
            thrones("tokens", "--users", str(users), "--out", str(file))
    return file


def _are_good(file: Path, users: int, url: str) -> bool:
    try:
        tokens = read_tokens(file)
    except (FileNotFoundError, ValueError):
        return False
    if len(tokens) < users or claims(tokens[0])["exp"] < time.time() + FRESH_FOR_S:
        return False
    return get(f"{url}/api/auth/me", tokens[0])[0] == 200


def read_tokens(file: Path) -> list[str]:
    """Raises FileNotFoundError, or ValueError if it is not a JSON array of tokens."""
    tokens = json.loads(file.read_text())
    if not isinstance(tokens, list) or not tokens:
        raise ValueError(f"{file}: not a JSON array of tokens")
    return [str(token) for token in tokens]


def claims(token: str) -> dict[str, Any]:
    """The claims of a token, unverified. Raises ValueError."""
    _, payload, _ = token.split(".")
    found: dict[str, Any] = json.loads(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return found
