"""This process' metrics in, Prometheus' text out: on a loopback port, or for workers that share one, through files.

`share` must run before the first metric of the process is made: that is when prometheus-client chooses where values live.
"""

import os
import sys
from pathlib import Path

from infra.settings import Settings

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FILES = "PROMETHEUS_MULTIPROC_DIR"  # prometheus-client's own name


def serve(settings: Settings) -> int:
    """Serve them on METRICS_PORT, or a free port, in a thread of its own; returns the port."""
    from prometheus_client import start_http_server

    server, _ = start_http_server(settings.metrics_port, addr=settings.listen_address)
    return int(server.server_port)


def share(state_dir: Path, role: str) -> None:
    """Keep this process' values in files that all workers of `role` add up."""
    if "prometheus_client.values" in sys.modules:
        raise RuntimeError("metrics were made already: this process would not tell its own")
    folder = state_dir / "metrics" / role
    folder.mkdir(parents=True, exist_ok=True)
    _start_afresh(folder)
    os.environ[FILES] = str(folder)


def exposed() -> bytes:
    """The text: over all workers that share files, dead ones' counters included, or of this process alone."""
    from prometheus_client import REGISTRY, CollectorRegistry, generate_latest, multiprocess

    if FILES not in os.environ:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def unshare() -> None:
    """This process ends: its gauges no longer count."""
    from prometheus_client import multiprocess

    if FILES in os.environ:
        multiprocess.mark_process_dead(os.getpid())  # type: ignore[no-untyped-call]


def _start_afresh(folder: Path) -> None:
    """Remove what workers before left when none of them lives; the gauges of single dead ones otherwise."""
    pids = {path: int(path.stem.rpartition("_")[2]) for path in folder.glob("*.db")}
    living = {pid for pid in pids.values() if Path(f"/proc/{pid}").exists()}
    for path, pid in pids.items():
        if not living or (pid not in living and path.name.startswith("gauge_live")):
            path.unlink(missing_ok=True)
