"""How full Redis is, as it judges itself before it refuses a write."""

from dataclasses import dataclass

from infra.redis.client import Redis


@dataclass(frozen=True, slots=True)
class RedisMemory:
    """`used_bytes` are those that count against `max_bytes` (maxmemory; 0: no limit)."""

    used_bytes: int
    max_bytes: int

    @property
    def share(self) -> float:
        return self.used_bytes / self.max_bytes if self.max_bytes else 0.0


async def read_memory(redis: Redis) -> RedisMemory:
    told = await redis.info("memory")
    # Buffers of the append-only file and of replicas come and go: Redis leaves them out when it decides.
    uncounted = int(told.get("mem_not_counted_for_evict", 0))
    return RedisMemory(int(told["used_memory"]) - uncounted, int(told["maxmemory"]))
