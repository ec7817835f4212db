"""The reference's metrics of a load test as lines for people."""

from collections.abc import Sequence

from .sale_result import ENDS, SaleResult, Spread


def lines(result: SaleResult) -> Sequence[str]:
    """The reference's metrics for people."""
    rate, each = result.order_success_rate, result.requests_per_order
    counted = ("successful_purchases", *ENDS.values(), "out_of_stock_409", *REFUSALS, "unknown_outcomes")
    timed = ("successful_purchases", "out_of_stock_409", "payment_processing_time", "total_order_time")
    named = {"successful_purchases": "answered 202 after", "out_of_stock_409": "answered 409 after"}
    return [
        *(f"  {metric:26}{result.count(metric):>9,}" for metric in counted if result.count(metric) or metric in KEY),
        f"  {'server_errors':26}{result.count('server_errors'):>9,}",
        f"  {'order_success_rate':26}{'-' if rate is None else f'{rate:.1%}':>9}",
        f"  {'requests_per_order':26}{'-' if each is None else f'{each:.2f}':>9}",
        *(_times(named.get(metric, metric), result.of(metric)) for metric in timed if result.count(metric)),
    ]


KEY = {"successful_purchases", "fully_confirmed_orders", "out_of_stock_409"}
REFUSALS = ("slow_down_429", "busy_503", "other_refusals")


def _times(what: str, spread: Spread) -> str:
    return (
        f"  {what:26}p50 {spread.p50_ms:>7,.0f}   p95 {spread.p95_ms:>7,.0f}   p99 {spread.p99_ms:>7,.0f}"
        f"   max {spread.max_ms:>7,.0f} ms"
    )
