"""The capacity model: from measured CPU per order to the machines for 10,000, 100,000 and a million orders a second.

The model multiplies: CPU per order times orders a second, divided by the allowed utilisation of a core. A simulation of the
measured machine (queueing.py) checks how well the model fits the measurements.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from infra.settings import Settings
from sale.books.inventory import ENDED_LIFETIME_MS
from schemas.topics import ORDERS

from .performance.arrivals import CPU_AT
from .performance.cpu import APART
from .performance.figures import shown
from .performance.report import Report
from .performance.table import table
from .queueing import STEP_S, Station, simulate

RATES = (1_000, 10_000, 100_000, 1_000_000)
BUSY = 0.6  # of a core: above it queues grow faster than load
SHOWN_MS = 0.001
REPLICATION = 3
BROKER_CORES = 8
BROKERS_LEAST = 3
POSTGRES_CORES = 32  # of one primary
PAYMENT_MEAN_S = 0.665 * math.exp(0.75**2 / 2)  # log-normal: median 665 ms, sigma 0.75
CHARGES_A_MEMBER = int(Settings.model_fields["worker_concurrency"].default)
# The server work that each station causes, by the calls and records of an order (docs/architecture.md).
BESIDE: dict[str, dict[str, float]] = {
    "gateway": {"redis": 0.3, "kafka": 0.2, "generator": 1.0},
    "order-stage": {"kafka": 0.35, "postgres": 0.5},
    "payment-stage": {"redis": 0.3, "kafka": 0.25, "postgres": 0.5, "payment-gateway": 1.0, "relay": 1.0},
    "projector": {"redis": 0.4, "kafka": 0.2},
}
# Bytes per order in Redis; tests/integration/test_redis_memory.py measures them.
LIVE_BYTES = 1_150  # while it holds units: entry, due time, count and list of the user, read model, key record
ENDED_BYTES = 290  # afterwards for ENDED_LIFETIME_MS: the read model
KEY_BYTES = 190  # for 24 hours: the key record, if the client sent a key
BUYER_BYTES = 50  # for the lifetime of the product: the units of a user
MAX_MEMORY_BYTES = 2**30  # of the local stack
ORDERS_A_DAY = (100_000, 1_000_000, 5_000_000, 10_000_000, 100_000_000)
SIMULATED_S = 15.0  # as long as the burst
DRAINED = 10_000.0
DRAIN_S = 300.0


@dataclass(frozen=True, slots=True)
class Need:
    """The machines for `per_s` orders a second, with every core at most BUSY."""

    per_s: int
    gateway_workers: int
    order_members: int
    payment_members: int
    projectors: int
    partitions: int
    brokers: int
    redis_shards: int
    postgres_cores: int
    postgres_primaries: int
    relay_cores: float  # of the one that leads
    cores: int


def need(ms_per_order: Mapping[str, float], per_s: int) -> Need:
    """`ms_per_order`: CPU by role, as measured."""

    def cores(role: str, times: int = 1) -> float:
        return per_s * ms_per_order.get(role, 0.0) / 1000 * times / BUSY

    members = {role: max(1, math.ceil(cores(role))) for role in ("gateway", "order-stage", "projector", "redis")}
    payment = max(1, math.ceil(cores("payment-stage")), math.ceil(per_s * PAYMENT_MEAN_S / CHARGES_A_MEMBER))
    kafka, postgres = cores("kafka", REPLICATION), cores("postgres")
    return Need(
        per_s=per_s,
        gateway_workers=members["gateway"],
        order_members=members["order-stage"],
        payment_members=payment,
        projectors=members["projector"],
        partitions=_partitions(members["order-stage"], payment, members["projector"]),
        brokers=max(BROKERS_LEAST, math.ceil(kafka / BROKER_CORES)),
        redis_shards=members["redis"],
        postgres_cores=max(1, math.ceil(postgres)),
        postgres_primaries=max(1, math.ceil(postgres / POSTGRES_CORES)),
        relay_cores=round(cores("relay") * BUSY, 1),
        cores=math.ceil(sum(members.values()) + payment + kafka + postgres),
    )


def _partitions(*members: int) -> int:
    """Per topic: two for each member of the largest group, so that a change of members leaves none idle."""
    return max(ORDERS.partitions, 2 * max(members))


def full_load(report: Report) -> dict[str, float]:
    """CPU per order by role, the median of the bursts. Raises ValueError if none was measured."""
    found = [entry.ms_per_order for name, entry in report.cpu.items() if name.startswith("full load")]
    if not found:
        raise ValueError("no CPU an order at full load was measured")
    return {role: statistics.median(by_role.get(role, 0.0) for by_role in found) for role in found[0]}


@dataclass(frozen=True, slots=True)
class Check:
    what: str
    model: float
    measured: float

    @property
    def ratio(self) -> float:
        return self.model / self.measured if self.measured else math.inf


def stations(ms_per_order: Mapping[str, float], workers: int) -> list[Station]:
    return [
        Station(
            name,
            workers if name == "gateway" else 1,
            ms_per_order.get(name, 0.0),
            sum(ms_per_order.get(role, 0.0) * share for role, share in beside.items()),
        )
        for name, beside in BESIDE.items()
    ]


def checks(report: Report) -> list[Check]:
    """The simulated machine compared with the measured one."""
    if report.card is None:
        return []
    costs = {**full_load(report), "generator": _generator_ms(report, "burst")}
    chain = stations(costs, report.card.processes.get("gateway", 1))
    burst = simulate(chain, report.card.cores, math.inf, SIMULATED_S)
    drain = simulate(chain, report.card.cores, 0.0, DRAIN_S, backlog=DRAINED)
    found = [("accepted in a burst, /s", burst.accepted[-1] / SIMULATED_S, _median(report, "burst_accepted"))]
    found += [("ended meanwhile, /s", burst.ended[-1] / SIMULATED_S, _noted(report, "ended/s meanwhile"))]
    found += [("drained afterwards, /s", _drain_rate(drain.ended), _noted(report, "drained/s"))]
    sustained = _sustained(chain, report.card.cores, awake_ms_per_s(report, costs))
    found += [("sustained, /s", sustained, _median(report, "sustained"))]
    return [Check(what, model, measured) for what, model, measured in found if measured]


def awake_ms_per_s(report: Report, costs: Mapping[str, float]) -> float:
    """The fixed CPU per second, which does not depend on the load: the extra cost per order at CPU_AT a second compared with
    full load, over all roles. Batches that gather for a fixed time come at the same rate under any load."""
    name = f"{CPU_AT}/s"
    if name not in report.cpu:
        return 0.0
    seen = {**report.cpu[name].ms_per_order, "generator": _generator_ms(report, f"arrivals {name}")}
    return sum(CPU_AT * max(0.0, ms - costs.get(role, 0.0)) for role, ms in seen.items())


def _generator_ms(report: Report, run: str) -> float:
    """Of runs whose name begins with `run`."""
    found = [note for note in report.generators if note.run.startswith(run) and note.answered_per_s]
    return statistics.median(1000 * n.cpu_share * n.processes / n.answered_per_s for n in found) if found else 0.0


def _median(report: Report, key: str) -> float:
    return report.figures[key].median if key in report.figures else 0.0


def _noted(report: Report, ending: str) -> float:
    values = [value for name, value in report.notes.items() if name.endswith(ending)]
    return statistics.median(values) if values else 0.0


def _drain_rate(ended: Sequence[float]) -> float:
    """Orders a second until nine tenths are done."""
    steps = next(number for number, orders in enumerate(ended, 1) if orders >= 0.9 * DRAINED)
    return ended[steps - 1] / (steps * STEP_S)


def _sustained(chain: Sequence[Station], cores: float, awake_ms: float) -> float:
    """The rate at which all stations keep up: limited by the machine's CPU (less the fixed part) or the slowest station."""
    left_ms = cores * 1000 - awake_ms
    return min(left_ms / sum(s.total_ms for s in chain), *(s.most_per_s(1.0) for s in chain))


def redis_bytes(orders_a_day: int, peak_per_s: float) -> dict[str, float]:
    """The maximum bytes in Redis for `orders_a_day` of one product, by kind; each order has its own key and buyer."""
    live = min(orders_a_day, int(Settings.model_fields["max_held"].default))
    ended = min(orders_a_day, peak_per_s * ENDED_LIFETIME_MS / 1000)
    return {
        "live": live * LIVE_BYTES,
        "ended": ended * ENDED_BYTES,
        "keys": orders_a_day * KEY_BYTES,
        "buyers": orders_a_day * BUYER_BYTES,
    }


def _memory(report: Report) -> str:
    peak, share = _median(report, "sustained"), float(Settings.model_fields["redis_full_at_share"].default)
    of_a_day = {orders: redis_bytes(orders, peak) for orders in ORDERS_A_DAY}
    rows = [
        (what, *(_mebibytes(kinds[kind]) for kinds in of_a_day.values()))
        for what, kind in (
            ("under way, at most `MAX_HELD`", "live"),
            (f"ended within ten minutes, at {shown(peak)} orders/s", "ended"),
            ("key records of 24 hours", "keys"),
            ("what buyers have", "buyers"),
        )
    ]
    needed = ("maxmemory", *(_mebibytes(sum(kinds.values()) / share) for kinds in of_a_day.values()))
    table_text = table(("Redis' memory, MiB, at orders a day of", *(f"{o:,}" for o in ORDERS_A_DAY)), [*rows, needed])
    left = MAX_MEMORY_BYTES * share - _most_at_once(peak)
    orders = math.floor(left / (KEY_BYTES + BUYER_BYTES) / 100_000) * 100_000
    declines = int(Settings.model_fields["declines_per_hour_per_user"].default) * 24
    accounts = math.floor(MAX_MEMORY_BYTES * share / (declines * KEY_BYTES) / 1_000) * 1_000
    return (
        f"{table_text}\n\nSo 1 GiB, which the local stack has, takes {orders:,} orders a day of which each has a key. An account"
        f" whose payments are always declined leaves at most {declines} key records a day and product, so it takes more than"
        f" {accounts:,} such accounts to fill it."
    )


def _most_at_once(peak_per_s: float) -> float:
    """Of orders that are under way, or have just ended."""
    kinds = redis_bytes(10**9, peak_per_s)
    return kinds["live"] + kinds["ended"]


def _mebibytes(count: float) -> str:
    return f"{count / 2**20:,.0f}"


def tables(report: Report) -> str:
    """The generated part of docs/capacity.md."""
    costs = full_load(report)
    needs = [need(costs, per_s) for per_s in RATES]
    rows = [
        (what, *(f"{getattr(found, field):,}" for found in needs))
        for what, field in (
            ("gateway workers", "gateway_workers"),
            ("order-stage members", "order_members"),
            ("payment-stage members", "payment_members"),
            ("projectors", "projectors"),
            ("partitions of each topic", "partitions"),
            (f"brokers of {BROKER_CORES} cores, replication {REPLICATION}", "brokers"),
            ("Redis shards, and products at least", "redis_shards"),
            ("Postgres cores", "postgres_cores"),
            (f"Postgres primaries of {POSTGRES_CORES} cores", "postgres_primaries"),
            ("of the leading relay, cores", "relay_cores"),
            ("cores in all", "cores"),
        )
    ]
    used = table(
        ("Process", "CPU an order, ms"), ((_named(role), f"{ms:.3f}") for role, ms in costs.items() if ms >= SHOWN_MS)
    )
    checked = ((c.what, shown(c.model), shown(c.measured), f"{c.ratio:.2f}") for c in checks(report))
    return "\n\n".join(
        (
            f"From commit `{report.card.commit if report.card else '-'}`. CPU an order at full load:",
            used,
            f"What that makes, every core {BUSY:.0%} busy:",
            table(("Orders a second", *(f"{rate:,}" for rate in RATES)), rows),
            "The simulated machine beside the measured one:",
            table(("Figure", "Model", "Measured", "Model / measured"), checked),
            f"One Redis shard, {BUSY:.0%} busy, carries {shown(1000 * BUSY / costs['redis'])} orders/s;"
            " one product cannot have more, for its books are one shard's.",
            _memory(report),
        )
    )


def _named(role: str) -> str:
    return f"{role} (the mock provider: apart)" if role in APART else role
