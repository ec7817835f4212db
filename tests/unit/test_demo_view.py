"""The demo's screen: what it shows of a tally, and that a picture of it is self-contained."""

from pathlib import Path

import pytest
from rich.console import Console

from bench.demo.progress import LiveView
from bench.demo.sale_tally import SaleTally
from bench.demo.view import SPARKS, RateSeries, screen, sparkline
from bench.tally import Tally


def a_sale() -> SaleTally:
    clients = Tally(requests=7, orders=2, answers={"202": 2, "409 sold_out": 5}, accepted_ms=[12.0])
    return SaleTally(buyers=3, clients=clients, stock=421, watchers=2)


def test_the_screen_shows_stock_funnel_delays_and_members() -> None:
    console = Console(width=96, record=True, quiet=True)
    console.quiet = False
    with console.capture() as captured:
        console.print(
            screen(a_sale(), 1_000, 3.5, RateSeries(), [{"role": "gateway", "member": "1", "pid": 1, "port": None}] * 2)
        )
    text = captured.get()
    for part in ("421 left", "12 ms", "gateway x2", "1,000 units, 3 buyers", "3.5 s in"):
        assert part in text
    assert [line.split()[-1] for line in text.splitlines() if "sold out" in line] != []


def test_rates_are_changes_per_bucket_and_quiet_buckets_are_zero() -> None:
    rates = RateSeries()
    for elapsed_s, count in ((0.0, 0), (0.1, 4), (0.6, 5), (2.1, 9)):
        rates.add(elapsed_s, {"accepted": count})
    assert rates.series["accepted"] == [4, 1, 0, 0, 4]


@pytest.mark.parametrize(("values", "shown"), [([], ""), ([0, 0], SPARKS[0] * 2), ([0, 7], SPARKS[0] + SPARKS[-1])])
def test_a_sparkline_is_full_at_its_highest(values: list[int], shown: str) -> None:
    assert sparkline(values) == shown


def test_a_picture_loads_nothing_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THRONES_STATE_DIR", str(tmp_path))
    path = tmp_path / "sale.svg"
    LiveView(a_sale(), 1_000, Console(quiet=True)).save(path)
    svg = path.read_text()
    assert "421" in svg
    assert "url(http" not in svg
    assert "@font-face" not in svg
