"""`thrones demo`: a running stack in; a sale of 1,000 units to 3,000 buyers, its audit and a summary out."""

import asyncio
import time
from contextlib import suppress
from pathlib import Path

import aiohttp
import msgspec
from rich.console import Console
from yarl import URL

from consumers.audit.audit import audit
from infra.keep_alive import KeepAliveClient
from infra.lifecycle import background
from infra.settings import SigningSettings
from sale.books.books import Books
from sale.operations import operations
from sale.operations.provision import provision
from sale.tables.queries import SQL
from schemas.ids import ProductId

from .buyers import Buyer, Crowd
from .people import timetable, tokens
from .progress import LiveView
from .sale_tally import SaleTally
from .summary import figures, passed, summary
from .watchers import EndsOnTheLog, watch_stock

BUYERS = 3_000
UNITS = 1_000
WATCHERS = 20
IDLE_S = 8.0  # of a kept connection: below the gateway's 10 s
SALE_TIMEOUT_S = 60.0
AUDIT_WAIT_S = 60.0
DOORS_S = 1.0  # watchers are in before the first click
LAST_RECORDS_S = 1.0  # what buyers have seen ended may still be on its way to the tail of the log


class NotReady(operations.OperationRefused):
    """The stack does not serve."""


async def demo(
    settings: SigningSettings, console: Console, picture: Path | None = None, *, as_json: bool = False
) -> bool:
    """The whole show; True when the books balance and no buyer saw what must not be. Raises NotReady.

    `picture` gets the live view as it stood in mid-sale, terminal or not. `as_json`: the figures on standard output, while
    `console` shows the sale.
    """
    url = _url(settings)
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S)
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        await _check_ready(session, url)
        async with operations.connected(settings) as stores:
            await provision(settings)
            await operations.deploy(stores)
            product = await _product(stores)
            console.print(f"{UNITS} units of product {product}, {BUYERS} buyers: preparing", highlight=False)
            buyers = timetable(await tokens(session, url, stores.pool, settings, BUYERS), product)
        tally = SaleTally()
        progress = LiveView(tally, UNITS, console)
        took_s = await _hold(settings, session, product, buyers, tally, progress)
    if picture is not None:
        progress.save(picture)
    console.print("The audit: waiting for quiet, then reading every book", highlight=False)
    report = await audit(settings, product, AUDIT_WAIT_S)
    if as_json:
        print(msgspec.json.encode(figures(tally, report, took_s)).decode())
    else:
        console.print("\n" + summary(tally, report, took_s, url), highlight=False, markup=False, soft_wrap=True)
    return passed(tally, report)


async def _hold(
    settings: SigningSettings,
    session: aiohttp.ClientSession,
    product: ProductId,
    buyers: list[Buyer],
    tally: SaleTally,
    progress: LiveView,
) -> float:
    """The sale itself; how many seconds it took."""
    url = _url(settings)
    client = KeepAliveClient(URL(url), connect_timeout_s=10, idle_s=IDLE_S, body_max_bytes=1 << 20, spread=True)
    log = EndsOnTheLog(settings, product, tally)
    await log.open()
    watching = [watch_stock(session, url, product, tally) for _ in range(WATCHERS)]
    try:
        async with background(*watching, log.run()):
            await asyncio.sleep(DOORS_S)
            async with background(progress.show()):
                started = time.monotonic()
                with suppress(TimeoutError):
                    async with asyncio.timeout(SALE_TIMEOUT_S):
                        await Crowd(client, product, tally).buy(buyers)
                took_s = time.monotonic() - started
                await asyncio.sleep(LAST_RECORDS_S)
    finally:
        client.close()
        await log.close()
    return took_s


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
