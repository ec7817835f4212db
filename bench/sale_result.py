"""The result of a load test as one value: the locust process writes it as JSON, `bench.load` reads and evaluates it."""

import msgspec

# The end of an accepted order -> the metric that counts it. `confirmed` has the reference's name.
ENDS = {
    "confirmed": "fully_confirmed_orders",
    "payment_failed": "declined_orders",
    "failed": "failed_orders",
    "unseen": "orders_without_an_end",
}
FOLLOWING = (
    "GET /api/order/[id]/status",
    "GET /sse/order/[id]",
)  # the names of requests that follow an order


class Spread(msgspec.Struct, frozen=True):
    """Times in ms, rounded by locust to two digits; `max_ms` is exact."""

    count: int = 0
    mean_ms: float = 0.0
    p50_ms: float = 0.0
    p95_ms: float = 0.0
    p99_ms: float = 0.0
    max_ms: float = 0.0


class SaleResult(msgspec.Struct, frozen=True, kw_only=True):
    """`sale` holds the reference's metrics by its names; `requests` the HTTP requests by method and name."""

    shape: str
    follow: str
    think_s: float
    seconds: float
    users_planned: float  # mean over the test
    users_running: float
    users_peak: int
    sale: dict[str, Spread]
    requests: dict[str, Spread]
    failures: dict[str, int]

    def of(self, metric: str) -> Spread:
        return self.sale.get(metric, Spread())

    def count(self, metric: str) -> int:
        return self.of(metric).count

    @property
    def order_success_rate(self) -> float | None:
        """Confirmed / accepted. An order without an observed end counts as not confirmed. None without orders."""
        accepted = self.count("successful_purchases")
        return self.count("fully_confirmed_orders") / accepted if accepted else None

    @property
    def requests_per_order(self) -> float | None:
        """Requests per accepted order: the accepted click, and those that followed the order to its end."""
        accepted = self.count("successful_purchases")
        followed = sum(spread.count for name, spread in self.requests.items() if name.startswith(FOLLOWING))
        return 1 + followed / accepted if accepted else None

    @property
    def clicks(self) -> int:
        """What users did on their own: view the product, or buy. Following an order is not a click."""
        return self.count("generator_late")  # noted at every click

    @property
    def offered_per_s(self) -> float:
        """Clicks a second if all answers came at once and no order were followed: planned users / think time."""
        return self.users_planned / self.think_s if self.think_s else 0.0

    @property
    def achieved_per_s(self) -> float:
        return self.clicks / self.seconds if self.seconds else 0.0
