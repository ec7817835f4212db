"""What the members of the stages report about themselves: one Redis hash, one field a process.

It only decides whether purchases are admitted. A lost report costs nothing: the next one comes a quarter of a second later.
"""

import msgspec

from infra.redis.client import Redis
from sale.books import keys

REPORT_INTERVAL_S = 0.25


class MemberReport(msgspec.Struct, frozen=True, array_like=True):
    """`beat` differs in each report. `held`: partitions of this member; `of`: those of the topic."""

    beat: int
    held: int
    of: int
    wait_ms: int


class Pipeline:
    """The hash. Every method raises RedisError or OSError."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def report(self, stage: str, member: str, report: MemberReport) -> None:
        await self._redis.hset(keys.PIPELINE, f"{stage}:{member}", msgspec.json.encode(report))

    async def read(self) -> dict[tuple[str, str], MemberReport]:
        """By stage and member. What another release wrote and this one cannot read is left out."""
        reports = {}
        for field, value in (await self._redis.hgetall(keys.PIPELINE)).items():
            stage, _, member = _text(field).partition(":")
            try:
                reports[stage, member] = msgspec.json.decode(value, type=MemberReport)
            except msgspec.MsgspecError:
                continue
        return reports

    async def forget(self, stage: str, member: str) -> None:
        await self._redis.hdel(keys.PIPELINE, f"{stage}:{member}")


def _text(field: str | bytes) -> str:
    return field.decode() if isinstance(field, bytes) else field
