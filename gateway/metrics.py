"""Every metric of the gateway: counted by each worker into its own files, summed over all of them by `expose`.

`opened` must run before the first metric of the process is made: that is when prometheus-client chooses where values live.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess, values

FAST_S = (0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5)


@dataclass(frozen=True, slots=True)
class Metrics:
    """What to do: `unpublished` growing or `publish_timeouts` - look at Kafka; `unknown` - look at Redis' replies."""

    folder: Path
    accepted: Counter
    acknowledged_s: Histogram
    refused: Counter
    unknown: Counter
    publish_timeouts: Counter
    unpublished: Gauge
    streams: Gauge
    streams_cut: Counter
    failed_logins: Counter

    def expose(self) -> bytes:
        """The text format, over all workers, dead ones' counters included."""
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry, path=str(self.folder))  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def opened(state_dir: Path, role: str = "gateway") -> Metrics:
    """The metrics of this worker, kept under `state_dir`, apart from those of other roles."""
    folder = state_dir / "metrics" / role
    folder.mkdir(parents=True, exist_ok=True)
    _start_afresh(folder)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    values.ValueClass = values.MultiProcessValue()  # type: ignore[no-untyped-call]
    own = CollectorRegistry()  # metrics of other rooms, if this process has any, stay out
    return Metrics(
        folder=folder,
        accepted=Counter("thrones_gateway_accepted", "202s to buy-flash", registry=own),
        acknowledged_s=Histogram(
            "thrones_gateway_acknowledged_seconds", "Request read to 202", buckets=FAST_S, registry=own
        ),
        refused=Counter("thrones_gateway_refused", "Problem answers by code", ["code"], registry=own),
        unknown=Counter("thrones_gateway_outcome_unknown", "Reserve replies lost twice (504)", registry=own),
        publish_timeouts=Counter(
            "thrones_gateway_publish_timeouts", "Publishes not acknowledged in 250 ms", registry=own
        ),
        unpublished=Gauge(
            "thrones_gateway_unpublished", "Orders owed to Kafka", registry=own, multiprocess_mode="livesum"
        ),
        streams=Gauge("thrones_gateway_streams", "Open event streams", registry=own, multiprocess_mode="livesum"),
        streams_cut=Counter("thrones_gateway_streams_cut", "Streams cut because nobody read them", registry=own),
        failed_logins=Counter("thrones_gateway_failed_logins", "Wrong email or password", registry=own),
    )


def closed(metrics: Metrics) -> None:
    """This worker ends: its gauges no longer count."""
    multiprocess.mark_process_dead(os.getpid(), path=str(metrics.folder))  # type: ignore[no-untyped-call]


def _start_afresh(folder: Path) -> None:
    """Remove what workers before left when none of them lives; the gauges of single dead ones otherwise."""
    pids = {path: int(path.stem.rpartition("_")[2]) for path in folder.glob("*.db")}
    living = {pid for pid in pids.values() if Path(f"/proc/{pid}").exists()}
    for path, pid in pids.items():
        if not living or (pid not in living and path.name.startswith("gauge_live")):
            path.unlink(missing_ok=True)
