"""Serves the metrics of this process to Prometheus: on a loopback port, or, for workers that share a port, through files.

Call `share` before the process makes its first metric: prometheus-client then decides where it stores values.
"""

import os
import sys
from pathlib import Path

from infra.settings import Settings

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FILES = "PROMETHEUS_MULTIPROC_DIR"  # read by prometheus-client


def serve(settings: Settings) -> int:
    """Serve the metrics on METRICS_PORT, or on a free port, in a thread. Returns the port."""
    from prometheus_client import start_http_server

    server, _ = start_http_server(settings.metrics_port, addr=settings.listen_address)
    return int(server.server_port)


def share(state_dir: Path, role: str) -> None:
    """Keep the values of this process in files, over which all workers of `role` sum."""
    if "prometheus_client.values" in sys.modules:
        raise RuntimeError("metrics were made already: this process would not export its own")
    folder = state_dir / "metrics" / role
    folder.mkdir(parents=True, exist_ok=True)
    _start_afresh(folder)
    os.environ[FILES] = str(folder)


def exposed() -> bytes:
    """The metrics as text: of all workers that share files (with the counters of dead ones), or of this process alone."""
    from prometheus_client import REGISTRY, CollectorRegistry, generate_latest, multiprocess

    if FILES not in os.environ:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call] # the library has no types here
    return generate_latest(registry)


def unshare() -> None:
    """Call it when the process ends: its gauges no longer count."""
    from prometheus_client import multiprocess

    if FILES in os.environ:
        multiprocess.mark_process_dead(os.getpid())  # type: ignore[no-untyped-call] # the library has no types here


def _start_afresh(folder: Path) -> None:
    """Remove the files of earlier workers if none of them lives; otherwise only the gauges of dead ones."""
    pids = {path: int(path.stem.rpartition("_")[2]) for path in folder.glob("*.db")}
    living = {pid for pid in pids.values() if Path(f"/proc/{pid}").exists()}
    for path, pid in pids.items():
        if not living or (pid not in living and path.name.startswith("gauge_live")):
            path.unlink(missing_ok=True)
