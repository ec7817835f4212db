"""`thrones demo`: a sale of 1,000 units to 3,000 buyers on a running stack, its audit and a summary."""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

import aiohttp
import msgspec
import psutil
from rich.console import Console

from bench import buyers, run_card
from bench.plan import Plan
from bench.tally import Tally
from infra.lifecycle import background
from infra.settings import SigningSettings
from sale.books.books import Books
from sale.operations import operations
from sale.operations.provision import provision
from sale.tables.queries import SQL
from schemas.ids import ProductId

from .people import tokens
from .progress import LiveView
from .sale_tally import SaleTally
from .summary import AuditedSale, Conditions, figures, passed, show
from .watchers import OrdersOnTheLog, watch_stock

BUYERS = 3_000
UNITS = 1_000
CLICKS_WITHIN_S, RUSH_AT_S = 3.0, 0.5  # at its height about 2,400 requests/s, second clicks included
CONNECTIONS = 512
FOLLOWED, LONG_POLLS = 0.25, 400  # of the orders; more places than there are followed ones
NICENESS = 5  # the sale comes first
DOUBLE_CLICKERS = 0.2
PATIENT = 0.1
PATIENT_UNTIL_S = 18.0
RETRIES = 7  # of one purchase, through 429, 503, 504 and broken connections: always with the same key
WATCHERS = 20
IDLE_S = 8.0  # of a kept connection: below the gateway's 10 s
SALE_TIMEOUT_S = 60.0
AUDIT_WAIT_S = 60.0
DOORS_S = 1.0  # watchers are in before the first click
POLL_INTERVAL_S = 0.1


Audit = Callable[[SigningSettings, ProductId, float], Awaitable[AuditedSale]]


class NotReady(operations.OperationRefused):
    """The stack does not serve."""


async def demo(
    settings: SigningSettings, console: Console, audit: Audit, picture: Path | None = None, *, as_json: bool = False
) -> bool:
    """The whole show. Returns whether the books balance and no buyer got a wrong answer. Raises NotReady.

    `picture` gets the live view as it stood in mid-sale, terminal or not. `as_json`: the figures on standard output, while
    `console` shows the sale.
    """
    url, machine = _url(settings), run_card.machine()
    console.print(f"On {machine}", highlight=False, soft_wrap=True)
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S)
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        await _check_ready(session, url)
        async with operations.connected(settings) as stores:
            await provision(settings)
            await operations.deploy(stores)
            product = await _product(stores)
            console.print(f"{UNITS} units of product {product}, {BUYERS} buyers: preparing", highlight=False)
            buying = await tokens(session, url, stores.pool, settings, BUYERS)
        tally = SaleTally(buyers=BUYERS)
        progress = LiveView(tally, UNITS, console)
        before = psutil.cpu_times()
        await _hold(settings, session, product, buying, tally, progress)
        conditions = Conditions(machine, run_card.stolen_share(before, psutil.cpu_times()))
    if picture is not None:
        progress.save(picture)
    console.print("The audit: waiting for quiet, then reading every book", highlight=False)
    audited = await audit(settings, product, AUDIT_WAIT_S)
    if as_json:
        print(msgspec.json.encode(figures(tally, audited, conditions)).decode())
    else:
        show(console, tally, audited, conditions, url)
    return passed(tally, audited)


async def _hold(
    settings: SigningSettings,
    session: aiohttp.ClientSession,
    product: ProductId,
    tokens_: list[str],
    tally: SaleTally,
    progress: LiveView,
) -> None:
    """The sale itself."""
    url = _url(settings)
    log = OrdersOnTheLog(settings, product, tally)
    await log.open()
    watching = [watch_stock(session, url, product, tally) for _ in range(WATCHERS)]
    with tempfile.NamedTemporaryFile(prefix="tokens-", suffix=".json") as file:
        file.write(msgspec.json.encode(tokens_))
        file.flush()
        try:
            async with background(*watching, log.run()):
                await asyncio.sleep(DOORS_S)
                async with background(progress.show()):
                    await _buy(plan_of(url, product, file.name), tally)
        finally:
            await log.close()


async def _buy(plan: Plan, tally: SaleTally) -> None:
    """Until every accepted order has ended, at most SALE_TIMEOUT_S."""

    def watch(tallies: Sequence[Tally]) -> None:
        if tallies:
            [tally.clients] = tallies

    with suppress(TimeoutError):
        async with asyncio.timeout(SALE_TIMEOUT_S):
            watch(await buyers.tallies(plan, watch=watch))
            while tally.unended:  # noqa: ASYNC110 - the log's records come in batches
                await asyncio.sleep(POLL_INTERVAL_S)


def plan_of(url: str, product: ProductId, tokens_file: str) -> Plan:
    """Most buyers come at once after the opening; some click twice, some stay when it is sold out.

    Buying comes from a process of lower priority than the stack's, with a bounded number of connections. Of the orders a
    quarter is followed, each by a long poll of its own: an order that waits for a free connection would look late.
    """
    return Plan(
        base_url=url,
        tokens=tokens_file,
        mode="open",
        rate=BUYERS / CLICKS_WITHIN_S,
        seconds=CLICKS_WITHIN_S,
        peak_s=RUSH_AT_S,
        connections=CONNECTIONS,
        products=(product,),
        double_clicks=DOUBLE_CLICKERS,
        retries=RETRIES,
        patient=PATIENT,
        patient_until_s=PATIENT_UNTIL_S,
        follow=FOLLOWED,
        follow_s=SALE_TIMEOUT_S,
        followers=LONG_POLLS,
        timeout_s=30.0,
        niceness=NICENESS,
        live=True,
    )


def _url(settings: SigningSettings) -> str:
    return f"http://127.0.0.1:{settings.port}"


async def _check_ready(session: aiohttp.ClientSession, url: str) -> None:
    try:
        async with session.get(f"{url}/health/ready") as response:
            if response.status == 200:
                return
            why = f"answers {response.status}"
    except aiohttp.ClientError as error:
        why = str(error)
    raise NotReady(f"{url}/health/ready: {why}; `make up` starts the stack, `thrones doctor` says what is wrong")


async def _product(stores: operations.Stores) -> ProductId:
    """Product 1 while nobody has bought of it, else a fresh one."""
    rows = await stores.pool.fetch(SQL.products)
    first = operations.REFERENCE_PRODUCT
    if any(row["id"] == first.id and row["initial"] == UNITS for row in rows) and await _untouched(stores, first.id):
        return first.id
    number = ProductId(max(row["id"] for row in rows) + 1)
    fresh = operations.NewProduct(number, f"{first.name}, edition {number}", first.price_cents, UNITS)
    await operations.create_product(stores, fresh)
    return number


async def _untouched(stores: operations.Stores, product: ProductId) -> bool:
    [level] = await Books(stores.redis).levels([product])
    return level is not None and level.available == UNITS and not await stores.pool.fetch(SQL.units_by_status, product)
