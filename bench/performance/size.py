"""How much is measured: quick (under 3 minutes), bench (under 20), full. The figures are the same, their times differ."""

from dataclasses import dataclass, field

# The reference's payment provider: log-normal, median 665 ms, p95 2.3 s.
REFERENCE_WEATHER = {"hang": 0.01, "unavailable": 0.02, "rate_limited": 0.01, "declined": 0.05}


@dataclass(frozen=True, slots=True)
class Size:
    name: str
    repeats: int  # of the burst and of the short latencies
    warm_up_s: float  # of each stack that orders are bought on
    burst_s: float
    probe_s: float  # of one step in the search for the rate that is sustained
    probes: int  # 0: a careful guess is held
    sustained_s: float
    delay_s: float
    arrivals_s: float
    overloads: tuple[int, ...]  # arrivals a second
    overload_s: float
    normal_s: float  # of calm arrivals after an overload
    clients: int  # of the stock stream
    stream_s: float
    followed: int  # orders whose requests are counted
    member_orders: int  # a member, in the growth by members; 0: not measured
    backlogs: tuple[int, ...]
    micro_rounds: int
    profiles: tuple[str, ...] = ()  # of bench.load
    weather: dict[str, float] = field(default_factory=lambda: dict(REFERENCE_WEATHER))


OVERLOADS = (3_500, 6_000)
NO_HANGS = REFERENCE_WEATHER | {"hang": 0.0}  # each sale would wait five seconds for the last one's end
QUICK = Size("quick", 1, 2, 3, 8, 0, 5, 5, 2, (6_000,), 1, 2, 2_000, 3, 20, 0, (), 1, weather=NO_HANGS)
BENCH = Size("bench", 5, 10, 15, 20, 2, 60, 25, 25, OVERLOADS, 6, 8, 10_000, 15, 100, 600, (10_000, 100_000), 7)
FULL = Size(
    "full",
    5,
    10,
    15,
    20,
    4,
    60,
    60,
    60,
    OVERLOADS,
    15,
    8,
    10_000,
    30,
    200,
    1_000,
    (10_000, 100_000, 1_000_000),
    9,
    ("reference", "soak"),
)
SIZES = {size.name: size for size in (QUICK, BENCH, FULL)}
