"""`thrones scale`: writes the wanted number of members to a file; the supervisor reads it and adds or removes members.

The number holds until the stack stops: the next `make up` has ORDER_WORKERS and PAYMENT_WORKERS members again.
"""

import asyncio
import json
import time
from pathlib import Path

from infra.supervision import registry
from infra.supervision.app_specs import stage_spec
from infra.supervision.phase import Phase, read_phase
from infra.supervision.ports import StackError
from infra.supervision.supervisor import Supervisor
from schemas.topics import CONSUMED_BY, StageName

MOST = 32
POLL_INTERVAL_S = 0.25


async def keep_sizes(supervisor: Supervisor, state_dir: Path) -> None:
    """Runs beside a supervisor, for ever: adds and removes members. Requests come only when the whole stack runs."""
    _file(state_dir).unlink(missing_ok=True)
    while True:
        for role, members in _requested(state_dir).items():
            await _resize(supervisor, role, members)
        await asyncio.sleep(POLL_INTERVAL_S)


def scale(state_dir: Path, role: str, members: int, deadline_s: float = 60.0) -> list[registry.ProcessRow]:
    """Request `members` of a stage and wait until they run. Raises StackError."""
    require_running_stack(state_dir)
    draft = _file(state_dir).with_suffix(".draft")
    draft.write_text(json.dumps(_requested(state_dir) | {role: members}))
    draft.replace(_file(state_dir))
    until = time.monotonic() + deadline_s
    while len(rows := [row for row in registry.live_rows(state_dir) if row["role"] == role]) != members:
        if time.monotonic() > until:
            raise StackError(
                f"{len(rows)} of {members} members run after {deadline_s:.0f} s; see `thrones logs {role}`"
            )
        time.sleep(POLL_INTERVAL_S)
    return rows


def require_running_stack(state_dir: Path) -> None:
    """Raises StackError unless the whole stack runs."""
    supervised = any(row["role"] == "supervisor" for row in registry.live_rows(state_dir))
    if not supervised or read_phase(state_dir) != Phase("running"):
        raise StackError("no stack runs here, or not all of it; `make up` starts one")


def scaling_warning(role: str, members: int) -> str:
    """A warning about this number of members for the operator; empty if there is none."""
    topic = CONSUMED_BY[role]
    idle = members - topic.partitions
    if members == 0:
        return f"no member processes {topic.name} now: orders wait"
    return f"{idle} of them have nothing to do: {topic.name} has {topic.partitions} partitions" if idle > 0 else ""


async def _resize(supervisor: Supervisor, role: str, members: int) -> None:
    wanted = {spec.name: spec for spec in (stage_spec(role, n) for n in range(1, members + 1))}
    present = {spec.name: spec for spec in supervisor.specs if spec.role == role}
    supervisor.start(spec for name, spec in wanted.items() if name not in present)
    surplus = [spec for name, spec in present.items() if name not in wanted]
    if surplus:
        await supervisor.stop(surplus)


def _requested(state_dir: Path) -> dict[str, int]:
    try:
        wishes = json.loads(_file(state_dir).read_text())
        return {
            role: n for role, n in wishes.items() if role in tuple(StageName) and isinstance(n, int) and 0 <= n <= MOST
        }
    except (OSError, ValueError, AttributeError):
        return {}  # no request yet


def _file(state_dir: Path) -> Path:
    return state_dir / "run" / "sizes"
