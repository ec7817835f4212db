"""Redis' memory use, by the same measure by which Redis refuses writes."""

from dataclasses import dataclass

from infra.redis.client import Redis


@dataclass(frozen=True, slots=True)
class RedisMemory:
    """`used_bytes` is what counts against `max_bytes` (maxmemory; 0: no limit)."""

    used_bytes: int
    max_bytes: int

    @property
    def share(self) -> float:
        return self.used_bytes / self.max_bytes if self.max_bytes else 0.0


async def read_memory(redis: Redis) -> RedisMemory:
    info = await redis.info("memory")
    # Redis does not count the buffers of the append-only file and of replicas against maxmemory.
    uncounted = int(info.get("mem_not_counted_for_evict", 0))
    return RedisMemory(int(info["used_memory"]) - uncounted, int(info["maxmemory"]))
