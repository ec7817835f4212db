"""Writes the file of Prometheus' targets (file_sd) from the process registry. Prometheus watches the file."""

import asyncio
from pathlib import Path

import msgspec

from infra.supervision import registry
from infra.supervision.ports import LOOPBACK

WRITE_INTERVAL_S = 1.0
SERVERS = ("kafka", "redis", "postgres")  # they do not serve HTTP
SHARED = ("gateway", "sse")  # any worker answers for all workers


async def keep_targets(state_dir: Path) -> None:
    """Runs beside a supervisor, for ever: keeps the file up to date."""
    written: list[dict[str, object]] | None = None
    while True:
        found = targets(registry.live_rows(state_dir))
        if found != written:
            draft = targets_file(state_dir).with_suffix(".draft")
            draft.parent.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(msgspec.json.encode(found))
            draft.replace(targets_file(state_dir))
            written = found
        await asyncio.sleep(WRITE_INTERVAL_S)


def targets(rows: list[registry.ProcessRow]) -> list[dict[str, object]]:
    """One target per process, and one for all workers of a gateway, with the labels `role` and `member`."""
    named = {(row["role"], "all" if row["role"] in SHARED else row["member"]): row["port"] for row in rows}
    return [
        {"targets": [f"{LOOPBACK}:{port}"], "labels": {"role": role, "member": member}}
        for (role, member), port in sorted(named.items())
        if port is not None and role not in SERVERS
    ]


def targets_file(state_dir: Path) -> Path:
    return state_dir / "prometheus" / "targets.json"
