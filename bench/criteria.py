"""Evaluates the reference's success criteria from the result of a load test and the audit's report. Pure."""

from typing import Any

import msgspec

from .sale_result import SaleResult

SUCCESS_RATE_MIN = 0.85
TOTAL_P95_MAX_S = 15.0
SERVER_ERRORS_MAX = 100

Books = dict[str, Any]  # one product of `thrones audit --json`


class Criterion(msgspec.Struct, frozen=True):
    """`met` is None if there was no data."""

    what: str
    wanted: str
    got: str
    met: bool | None


def judge(result: SaleResult, books: Books | None) -> list[Criterion]:
    """The reference's four."""
    return [_success_rate(result), _total_time(result), _server_errors(result), _not_oversold(books)]


def _success_rate(result: SaleResult) -> Criterion:
    rate = result.order_success_rate
    got = "no order was accepted" if rate is None else f"{rate:.1%}"
    met = None if rate is None else rate > SUCCESS_RATE_MIN
    return Criterion("success rate of accepted orders", f"> {SUCCESS_RATE_MIN:.0%}", got, met)


def _total_time(result: SaleResult) -> Criterion:
    total = result.of("total_order_time")
    got = f"{total.p95_ms / 1000:.2f} s" if total.count else "no order was seen to end"
    met = total.p95_ms < TOTAL_P95_MAX_S * 1000 if total.count else None
    return Criterion("p95 of the total order time", f"< {TOTAL_P95_MAX_S:.0f} s", got, met)


def _server_errors(result: SaleResult) -> Criterion:
    errors = result.count("server_errors")
    return Criterion("server errors", f"< {SERVER_ERRORS_MAX}", str(errors), errors < SERVER_ERRORS_MAX)


def _not_oversold(books: Books | None) -> Criterion:
    what = "no overselling"
    if books is None:
        return Criterion(what, "confirmed <= stock", "the books were not read", None)
    confirmed = int(books["postgres"].get("confirmed", {}).get("units", 0))
    captured = int(books["charges"]["captured"])
    met = books["oversold"] == 0 and max(confirmed, captured) <= books["initial"]
    return Criterion(
        what,
        f"confirmed and charged <= {books['initial']}",
        f"confirmed {confirmed}, charged {captured}, oversold {books['oversold']}",
        met,
    )


def show(criteria: list[Criterion]) -> str:
    word = {True: "met", False: "NOT MET", None: "not judged"}
    rows = [f"  {word[c.met]:11}{c.what:33}{c.wanted:33}{c.got}" for c in criteria]
    return "\n".join(rows)
