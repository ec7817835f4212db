"""Reads the lag of every consumer group by partition, its rate and its members."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment

from infra.kafka.watermarks import KAFKA_ERRORS, Watermarks, lags
from infra.settings import Settings
from schemas.topics import CONSUMED_BY

ANSWER_TIMEOUT_MS = 3_000


@dataclass(frozen=True, slots=True)
class GroupLag:
    """One group at one moment. Rates are records per second since the previous reading; None at the first."""

    group: str
    lag: dict[int, int]
    drained_per_s: float | None
    drain_s: float | None  # None: unknown, or never at this rate
    members: dict[str, list[int]]  # client id -> partitions


async def read_lags(settings: Settings) -> dict[str, dict[int, int]]:
    """The lag of each of our groups. Raises KafkaError, OSError or TimeoutError if Kafka does not answer."""
    watermarks = Watermarks(settings)
    try:
        return dict(await lags(watermarks))
    finally:
        await watermarks.close()


async def watch(settings: Settings, every_s: float) -> AsyncIterator[list[GroupLag]]:
    """Yields a reading every `every_s`, for ever. Raises like `read_lags`."""
    watermarks = Watermarks(settings)
    admin = AIOKafkaAdminClient(
        bootstrap_servers=settings.kafka_bootstrap_servers, request_timeout_ms=ANSWER_TIMEOUT_MS
    )
    before: dict[str, tuple[float, int]] = {}
    try:
        await admin.start()
        while True:
            found = await lags(watermarks)
            now = time.monotonic()
            yield [await _group_lag(admin, group, lag, now, before.get(group)) for group, lag in found.items()]
            before = {group: (now, sum(lag.values())) for group, lag in found.items()}
            await asyncio.sleep(every_s)
    finally:
        await watermarks.close()
        with suppress(*KAFKA_ERRORS):
            await admin.close()


async def _group_lag(
    admin: AIOKafkaAdminClient, group: str, lag: dict[int, int], now: float, before: tuple[float, int] | None
) -> GroupLag:
    rate = None if before is None else (before[1] - sum(lag.values())) / (now - before[0])
    return GroupLag(group, lag, rate, drain_s(sum(lag.values()), rate), await _members(admin, group))


def drain_s(lag: int, drained_per_s: float | None) -> float | None:
    """Seconds until the lag is 0 at this rate, arrivals included; 0 without lag, None if never."""
    if lag == 0:
        return 0.0
    return lag / drained_per_s if drained_per_s and drained_per_s > 0 else None


async def _members(admin: AIOKafkaAdminClient, group: str) -> dict[str, list[int]]:
    # One group per request: aiokafka 0.14 decodes the answer correctly for a single group only.
    answer = (await admin.describe_consumer_groups([group]))[0]
    return {
        f"{member[1]}#{number}": _partitions(CONSUMED_BY[group].name, member[4])
        for described in answer.groups
        for number, member in enumerate(sorted(described[5], key=lambda member: str(member[:2])), start=1)
    }


def _partitions(topic: str, assignment: bytes) -> list[int]:
    decoded: Any = ConsumerProtocolMemberAssignment.decode(assignment) if assignment else None
    return sorted(
        p for name, partitions in (decoded.assignment if decoded else ()) if name == topic for p in partitions
    )


def show(by_group: dict[str, dict[int, int]]) -> str:
    return "\n".join(
        f"{group:<18}{sum(lag.values()):>9}  ({', '.join(f'{p}: {n}' for p, n in sorted(lag.items()))})"
        for group, lag in by_group.items()
    )


def show_live(groups: list[GroupLag]) -> str:
    """One line per group and one per member; a member without a partition is marked."""
    return "\n".join(line for group in groups for line in _lines(group))


def _lines(group: GroupLag) -> list[str]:
    lag = sum(group.lag.values())
    rate = f"  {0 - group.drained_per_s:>+9,.1f}/s" if group.drained_per_s else ""
    empty = "" if lag == 0 else f"  empty in {group.drain_s:,.1f} s" if group.drain_s is not None else "  not draining"
    lines = [f"{group.group:<18}{lag:>9,}{rate}{empty}"]
    for member, partitions in group.members.items():
        does = ", ".join(f"{p}: {group.lag.get(p, 0)}" for p in partitions) or "nothing to do: no partition is left"
        lines.append(f"  {member:<20} {does}")
    return lines if group.members else [*lines, "  nobody works on it"]
