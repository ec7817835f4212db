"""Makes metrics from their definitions. A metric is made where it is used, so a process exports only its own metrics."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import ClassVar

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

Bounds = tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """`name` as in queries; `unit` of the value or of what is counted. Labels must have few values."""

    name: str
    unit: str
    meaning: str
    to_do: str = ""
    labels: tuple[str, ...] = ()
    kind: ClassVar[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterOf(Definition):
    """A value that only grows; query its `rate` or `increase`."""

    kind: ClassVar[str] = "counter"

    def make(self) -> Counter:
        return _counter(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class GaugeOf(Definition):
    """A current value. For workers that share one endpoint, the values of the living ones are added."""

    kind: ClassVar[str] = "gauge"

    def make(self) -> Gauge:
        return _gauge(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class HistogramOf(Definition):
    """A distribution, observed value by value."""

    kind: ClassVar[str] = "histogram"
    bounds: Bounds

    def make(self) -> Histogram:
        return _histogram(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class DelaysOf(Definition):
    """A distribution of delays, observed batch by batch."""

    kind: ClassVar[str] = "histogram"
    bounds: Bounds

    def make(self) -> "Delays":
        return _delays(self)


class Delays(Collector):
    """Costs 0.3 µs a record, a third of a Histogram, which takes locks per observation. Only one thread may observe."""

    def __init__(self, definition: DelaysOf) -> None:
        self._definition = definition
        self._counts = [0] * (len(definition.bounds) + 1)
        self._sum_s = 0.0

    def observe(self, now_ms: int, since_ms: Iterable[int]) -> None:
        """Observe the age of each of these times (milliseconds). Different clocks give no negative delays."""
        bounds, counts = self._definition.bounds, self._counts
        for at_ms in since_ms:
            delay_s = max(0.0, (now_ms - at_ms) / 1000)
            counts[bisect_left(bounds, delay_s)] += 1
            self._sum_s += delay_s

    def collect(self) -> Iterator[Metric]:
        names = [*map(str, self._definition.bounds), "+Inf"]
        family = HistogramMetricFamily(self._definition.name, self._definition.meaning)
        family.add_metric([], list(zip(names, accumulate(self._counts), strict=True)), self._sum_s)
        yield family

    def describe(self) -> Iterator[Metric]:
        yield HistogramMetricFamily(self._definition.name, self._definition.meaning)


@cache
def _counter(of: CounterOf) -> Counter:
    return Counter(of.name.removesuffix("_total"), of.meaning, of.labels)


@cache
def _gauge(of: GaugeOf) -> Gauge:
    return Gauge(of.name, of.meaning, of.labels, multiprocess_mode="livesum")


@cache
def _histogram(of: HistogramOf) -> Histogram:
    return Histogram(of.name, of.meaning, of.labels, buckets=of.bounds)


@cache
def _delays(of: DelaysOf) -> Delays:
    made = Delays(of)
    REGISTRY.register(made)
    return made
