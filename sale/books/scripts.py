"""The Lua scripts beside this file, by name, and the digests by which Redis calls them."""

from pathlib import Path

from infra.redis.pipeliner import digest

SCRIPTS = {path.stem: path.read_text() for path in Path(__file__).parent.glob("*.lua")}
DIGESTS = {name: digest(body) for name, body in SCRIPTS.items()}
