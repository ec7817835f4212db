"""`thrones report`: renders the views of a sale as one self-contained page with pictures."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from html import escape
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import duckdb

from consumers.replay.reader import InvalidRequest, ReplayError
from schemas.money import to_decimal

from . import pictures

PAGE = Path(__file__).with_name("report.html")
FIGURES = Path(__file__).with_name("figures.sql")
PICTURES = ("stock", "rates", "delays", "funnel")
PRODUCTS_DRAWN = len(pictures.COLOURS)
PRODUCTS_NAMED = 3  # in the title
SLICES = 300  # at most so many in the picture of rates
STEP_NAMES = {
    "processing": "stored",
    "processing_payment": "charge begun",
    "needs_reconciliation": "outcome unknown",
    "confirmed": "confirmed",
    "payment_failed": "payment failed",
    "failed": "failed",
}
STAGE_NAMES = STEP_NAMES | {"queued": "accepted", "awaiting_payment": "stored"}


class Picture(NamedTuple):
    name: str
    title: str
    caption: str
    figure: Any


class ReportedProduct(NamedTuple):
    """A product as the records describe it. Records from before openings had a name leave `name` None."""

    id: int
    name: str | None
    opened: bool
    orders: int

    @property
    def called(self) -> str:
        return f"{self.name} (product {self.id})" if self.name else f"product {self.id}"


class RenderedReport(NamedTuple):
    """`page` is a complete HTML page, `images` are PNGs by name. `left_out` names products without an opening."""

    page: str
    images: dict[str, bytes]
    left_out: str


class _Questions:
    """Runs the statements of figures.sql for a list of products."""

    def __init__(self, lake: duckdb.DuckDBPyConnection, products: Sequence[int]) -> None:
        parts = re.split(r"^-- name: (\w+)$", FIGURES.read_text(), flags=re.MULTILINE)[1:]
        self._statements = dict(zip(parts[::2], parts[1::2], strict=True))
        self._lake = lake
        self.products = list(products)

    def rows(self, name: str, **more: object) -> list[tuple[Any, ...]]:
        return self._lake.execute(self._statements[name], {"products": self.products, **more}).fetchall()

    def row(self, name: str) -> dict[str, Any]:
        [values] = self.rows(name)
        return dict(zip([column[0] for column in self._lake.description or ()], values, strict=True))

    def every_product(self) -> list["ReportedProduct"]:
        """All products with orders, most orders first."""
        return [ReportedProduct(*row) for row in self._lake.execute(self._statements["products"]).fetchall()]


def make_report(lake: duckdb.DuckDBPyConnection, product: int | None = None) -> RenderedReport:
    """Raises ReplayError if the log has no orders, or none of that product."""
    ask = _Questions(lake, [])
    drawn_of, left_out = _choose(ask.every_product(), product)
    ask.products = [each.id for each in drawn_of]
    numbers, books = ask.row("numbers"), ask.row("books")
    drawn = _pictures(ask, numbers)
    page = Template(PAGE.read_text()).substitute(
        title=escape(_title(drawn_of)),
        left_out=escape(left_out),
        when=f"{_moment(numbers['first_at'])} to {_moment(numbers['last_at'])}, UTC",
        verdict=_verdict(numbers, books),
        numbers="".join(
            f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in _figures(ask, numbers, books)
        ),
        pictures="".join(_figure(picture) for picture in drawn),
        funnel=_table(("step", "orders", "units"), [(_stage(s), f"{o:,}", f"{u:,}") for s, o, u in ask.rows("funnel")]),
        refused=_source_note(ask),
        delays=_table(
            ("step", "orders", "p50", "p95", "p99"),
            [(_step(s), f"{n:,}", *map(_duration, ps)) for s, n, *ps in ask.rows("delays")],
        ),
    )
    return RenderedReport(page, {picture.name: pictures.to_png(picture.figure) for picture in drawn}, left_out)


def _choose(known: Sequence[ReportedProduct], wanted: int | None) -> tuple[list[ReportedProduct], str]:
    """The products to draw, and a sentence about those left out. Raises ReplayError if there are none to draw."""
    if wanted is not None and wanted not in {product.id for product in known}:
        there = ", ".join(str(product.id) for product in known) or "none"
        raise ReplayError(f"no orders of product {wanted} in the log; there are: {there}")
    if not known:
        raise ReplayError("no orders in the log: there is nothing to draw")
    if wanted is not None:
        return [product for product in known if product.id == wanted], ""
    opened = [product for product in known if product.opened]
    if not opened:  # a stretch from the middle of a sale
        return list(known), ""
    others = [f"{product.orders:,} of product {product.id}" for product in known if not product.opened]
    text = f"Left out are orders of products that were never put on sale in these records: {', '.join(others)}."
    return opened, text if others else ""


def _title(products: Sequence[ReportedProduct]) -> str:
    if len(products) == 1:
        return f"The sale of {products[0].called}"
    named = ", ".join(product.called for product in products[:PRODUCTS_NAMED])
    more = f" and {len(products) - PRODUCTS_NAMED} more" if len(products) > PRODUCTS_NAMED else ""
    return f"{len(products)} products on sale: {named}{more}"


def _pictures(ask: _Questions, numbers: dict[str, Any]) -> list[Picture]:
    sale_s = (numbers["last_at"] - numbers["first_at"]).total_seconds()
    width_s = max(int(sale_s) // SLICES, 1)
    stock: defaultdict[int, list[pictures.Point]] = defaultdict(list)
    for product, at_s, available in ask.rows("stock"):
        stock[product].append((at_s, available))
    most = {product: stock[product] for product in ask.products[:PRODUCTS_DRAWN] if stock[product]}
    rates: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
    for kind, slice_, a_second in ask.rows("rates", width=width_s):
        rates[kind].append((slice_, a_second))
    last_s = max([sale_s, *(points[-1][0] for points in stock.values()), *_ends_s(rates, width_s)])
    steps = [(_step(status), p50, p95, p99) for status, _, p50, p95, p99 in ask.rows("delays")]
    stages = [(_stage(status), orders) for status, orders, _ in ask.rows("funnel")]
    only = "" if len(most) == len(ask.products) else f" The {len(most)} products with the most orders."
    captions = {
        "stock": f"Units on sale: down when an order is accepted, up when one is given back.{only}",
        "rates": f"{', '.join(rates).capitalize()}, in slices of {width_s} s.",
        "delays": "From the status before; a half, 95 % and 99 % of the orders were faster.",
        "funnel": "Orders that reached each step.",
    }
    return [
        Picture("stock", "Stock", captions["stock"], pictures.stock(most, last_s)),
        Picture("rates", "Orders a second", captions["rates"], pictures.rates(rates, width_s, last_s)),
        Picture("delays", "Time from step to step", captions["delays"], pictures.delays(steps)),
        Picture("funnel", "How far orders came", captions["funnel"], pictures.funnel(stages)),
    ]


def _ends_s(rates: Mapping[str, Sequence[tuple[int, float]]], width_s: int) -> list[int]:
    return [(points[-1][0] + 1) * width_s for points in rates.values()]


def _figure(picture: Picture) -> str:
    svg = pictures.to_svg(picture.figure).replace("<svg", f'<svg role="img" aria-label="{escape(picture.title)}"', 1)
    # Ids must be unique on the page: each drawing prefixes its own.
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{picture.name}-", svg)
    return f"<figure><h2>{picture.title}</h2>{svg}<figcaption>{picture.caption}</figcaption></figure>"


def _source_note(ask: _Questions) -> str:
    [(_, answers)] = ask.rows("refused")
    if answers:
        return (
            "Everything here is read from the log, but for the refused requests: those are from the clients' own log."
        )
    return (
        "Everything here is read from the log. Refused requests leave no record there: the gateway counts them by reason "
        "(<code>/metrics</code>), and a client log given with <code>--client-log</code> draws them here."
    )


def _figures(ask: _Questions, numbers: dict[str, Any], books: dict[str, Any]) -> list[tuple[str, str]]:
    [(refused, answers)] = ask.rows("refused")
    of_clients = [("requests refused", f"{refused:,}")] if answers else []
    return [
        ("units put on sale", f"{books['initial'] or 0:,}"),
        ("orders accepted", f"{numbers['orders']:,}"),
        *of_clients,
        ("buyers", f"{numbers['buyers']:,}"),
        ("units sold", f"{numbers['confirmed_units']:,}"),
        (f"taken in, {numbers['currency']}", f"{Decimal(to_decimal(numbers['confirmed_cents'])):,}"),
        ("orders given back", f"{numbers['declined']:,}"),
        ("orders under way", f"{numbers['under_way']:,}"),
        ("half of them done within", _duration(numbers["p50_ms"])),
        ("95 % of them done within", _duration(numbers["p95_ms"])),
    ]


def _verdict(numbers: dict[str, Any], books: dict[str, Any]) -> str:
    if books["initial"] is None or books["lowest"] is None:
        return "The opening of the stock is not among these records, so they cannot say whether it was oversold."
    if books["lowest"] < 0 or numbers["confirmed_units"] > books["initial"]:
        return "<strong>Oversold:</strong> more units were sold than there were."
    gaps = f"; {books['missing']:,} changes are not among these records" if books["missing"] else ", no change missing"
    return f"Never oversold: the stock never fell below {books['lowest']:,}{gaps}."


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _step(status: str) -> str:
    return STEP_NAMES.get(status, status)


def _stage(status: str) -> str:
    return STAGE_NAMES.get(status, status)


def _duration(ms: float | None) -> str:
    if ms is None:
        return "-"
    return f"{ms:.0f} ms" if ms < 1000 else f"{ms / 1000:.1f} s"


def _moment(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M:%S")


def write(report: RenderedReport, out: Path, *, force: bool) -> list[Path]:
    """Writes the page to `out` and the pictures beside it (x.html: x-stock.png, ...). On ReplayError no file is left."""
    check_place(out, force=force)
    files = {out: report.page.encode()}
    files |= {_beside(out, name): image for name, image in report.images.items()}
    drafts = {path: path.with_name(f".{path.name}.partial") for path in files}
    try:
        for path, content in files.items():
            drafts[path].write_bytes(content)
        for path, draft in drafts.items():
            draft.replace(path)
    except OSError as error:
        raise ReplayError(f"{out} could not be written: {error.strerror}") from error
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)
    return list(files)


def check_place(out: Path, *, force: bool) -> None:
    """Raises ReplayError if `out` cannot be written."""
    if out.suffix != ".html":
        raise InvalidRequest(f"--out {out}: a page ends in .html")
    if not out.absolute().parent.is_dir():
        raise ReplayError(f"there is no directory {out.parent}")
    for path in (out, *(_beside(out, name) for name in PICTURES)):
        if path.is_dir():
            raise ReplayError(f"{path} is a directory")
        if path.exists() and not force:
            raise ReplayError(f"{path} exists; --force replaces it")


def _beside(out: Path, name: str) -> Path:
    return out.with_name(f"{out.stem}-{name}.png")
