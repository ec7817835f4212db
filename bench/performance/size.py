"""The sizes of a measurement: quick (under 5 minutes, without some figures), bench (under 45), full."""

from dataclasses import dataclass, field, replace

# The reference's payment provider: log-normal, median 665 ms, p95 2.3 s.
REFERENCE_WEATHER = {"hang": 0.01, "unavailable": 0.02, "rate_limited": 0.01, "declined": 0.05}


@dataclass(frozen=True, slots=True)
class Size:
    name: str
    repeats: int  # of the burst and the short latency measures
    cold_repeats: int  # new stacks for each of the first seconds' figures
    cold_s: float  # of full load on a new stack
    warm_up_s: float  # of each stack with purchases
    burst_s: float
    probe_s: float  # of one step in the search for the sustained rate
    probes: int  # 0: only a careful guess is tested
    sustained_s: float
    delay_s: float
    arrivals_s: float
    overloads: tuple[int, ...]  # arrivals a second
    overload_s: float
    overload_repeats: int
    normal_s: float  # of calm arrivals after an overload
    clients: int  # of the stock stream
    stream_s: float
    followed: int  # orders whose requests are counted
    member_orders: int  # per member, in the growth by members; 0: not measured
    member_repeats: int
    backlogs: tuple[int, ...]
    micro_rounds: int
    profiles: tuple[str, ...] = ()  # of bench.load
    weather: dict[str, float] = field(default_factory=lambda: dict(REFERENCE_WEATHER))


OVERLOADS = (3_500, 6_000)
QUICK = Size(
    name="quick",
    repeats=1,
    cold_repeats=1,
    cold_s=10,
    warm_up_s=2,
    burst_s=3,
    probe_s=0,
    probes=0,
    sustained_s=5,
    delay_s=5,
    arrivals_s=2,
    overloads=(6_000,),
    overload_s=1,
    overload_repeats=1,
    normal_s=2,
    clients=2_000,
    stream_s=3,
    followed=20,
    member_orders=0,
    member_repeats=0,
    backlogs=(),
    micro_rounds=1,
    weather=REFERENCE_WEATHER | {"hang": 0.0},  # with hangs each sale would wait five seconds for its last order
)
BENCH = Size(
    name="bench",
    repeats=5,
    cold_repeats=5,
    cold_s=30,
    warm_up_s=10,
    burst_s=15,
    probe_s=20,
    probes=2,
    sustained_s=60,
    delay_s=25,
    arrivals_s=25,
    overloads=OVERLOADS,
    overload_s=4,
    overload_repeats=2,
    normal_s=6,
    clients=10_000,
    stream_s=15,
    followed=100,
    member_orders=600,
    member_repeats=1,
    backlogs=(10_000, 100_000),
    micro_rounds=7,
)
FULL = replace(
    BENCH,
    name="full",
    probes=4,
    delay_s=60,
    arrivals_s=60,
    overload_s=15,
    overload_repeats=3,
    normal_s=8,
    stream_s=30,
    followed=200,
    member_orders=1_000,
    member_repeats=3,
    backlogs=(10_000, 100_000, 1_000_000),
    micro_rounds=9,
    profiles=("reference", "soak"),
)
SIZES = {size.name: size for size in (QUICK, BENCH, FULL)}
