"""Waits until the stack is ready: the gateway says so, and members of this run hold all partitions of every stage."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.errors import KafkaError

from infra.local.config import StackConfig
from infra.local.kafka import bootstrap
from infra.supervision import registry
from infra.supervision.ports import StackError
from infra.supervision.process import tail
from schemas.topics import CONSUMED_BY

READY_DEADLINE_S = 60.0
POLL_INTERVAL_S = 0.5
STABLE = "Stable"


async def group_members(config: StackConfig) -> dict[str, tuple[str, dict[str, int]]]:
    """Group -> (state, member id -> partitions of the group's topic that it holds). Raises KafkaError."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap(config), request_timeout_ms=3_000)
    try:
        await admin.start()
        # One by one: aiokafka 0.14 parses version 3 of the response as version 2, which is right for one group only.
        answers = [(await admin.describe_consumer_groups([group]))[0] for group in CONSUMED_BY]
    finally:
        await admin.close()
    groups = {}
    for answer in answers:
        for _error, group, state, _type, _protocol, members, *_ in answer.groups:
            topic = CONSUMED_BY[group].name
            groups[group] = (state, {member[0]: _partitions_of(topic, member[4]) for member in members})
    return groups


async def wait_ready(
    config: StackConfig, state_dir: Path, say: Callable[[str], None], deadline_s: float = READY_DEADLINE_S
) -> None:
    """Return when ready. Raises StackError, which names what is missing, with the end of the log of a failing process."""
    reported = ""
    until = time.monotonic() + deadline_s
    former = former_members(state_dir)
    while missing := await _missing(config, former):
        if time.monotonic() > until:
            raise StackError(f"not ready after {deadline_s:.0f} s: {missing}{_log_of(missing, state_dir)}")
        if not any(row["role"] == "supervisor" for row in registry.live_rows(state_dir)):
            raise StackError(f"the supervisor ended:\n{tail(state_dir / 'logs' / 'supervisor-1.log')}")
        if missing != reported:
            reported = missing
            say(f"waiting: {missing}")
        await asyncio.sleep(POLL_INTERVAL_S)


async def store_former_members(config: StackConfig, state_dir: Path) -> None:
    """Store the members of the groups before our processes start: killed members seem alive for a while."""
    try:
        members = [member for _state, held in (await group_members(config)).values() for member in held]
    except KafkaError:
        members = []  # a new cluster has no group coordinator yet, so no members either
    (state_dir / "run" / "former-members").write_text("\n".join(members))


def former_members(state_dir: Path) -> frozenset[str]:
    try:
        return frozenset((state_dir / "run" / "former-members").read_text().splitlines())
    except FileNotFoundError:
        return frozenset()


async def _missing(config: StackConfig, former: frozenset[str]) -> str:
    """The first thing that is not ready, as `process: reason`; empty when all is ready."""
    try:
        groups = await group_members(config)
    except (KafkaError, OSError, TimeoutError) as error:
        return f"kafka: {type(error).__name__}"
    for group, topic in CONSUMED_BY.items():
        state, held = groups.get(group, ("absent", {}))
        count = sum(partitions for member, partitions in held.items() if member not in former)
        if state != STABLE or count < topic.partitions:
            return f"{group}: {count} of {topic.partitions} partitions of {topic.name} ({state.lower() or 'absent'})"
    return await _gateway_missing(config.port)


async def _gateway_missing(port: int) -> str:
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session,
            session.get(f"http://127.0.0.1:{port}/health/ready") as response,
        ):
            return "" if response.status == 200 else f"gateway: /health/ready answers {response.status}"
    except (aiohttp.ClientError, TimeoutError) as error:
        return f"gateway: {type(error).__name__}"


def _log_of(missing: str, state_dir: Path) -> str:
    role = missing.partition(":")[0].replace("status-projector", "projector")
    logs = sorted((state_dir / "logs").glob(f"{role}-*.log"))
    return "".join(f"\nthe end of {log}:\n{tail(log)}" for log in logs[:1])


def _partitions_of(topic: str, assignment: bytes) -> int:
    if not assignment:
        return 0
    decoded = ConsumerProtocolMemberAssignment.decode(assignment)
    return sum(len(partitions) for name, partitions in decoded.assignment if name == topic)
