"""Microbenchmarks of the hot paths, with the pipeline's batch sizes: µs per operation, the median of several rounds.

Reserve, place, settle and project run against separate real servers, from this one process, so each figure includes the wait
for the server. python -m bench.micro
"""

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from infra.commands import SingleCommand
from infra.local.stack import reset, start_servers
from infra.settings import SigningSettings, get_settings
from sale.accounts.tokens import OwnTokens, sign
from sale.books.inventory import Held, Inventory, Reservation
from sale.operations.operations import NewProduct, Stores, connected, create_product
from sale.operations.provision import provision
from sale.orders import place_rows, read_rows, terminal_event
from sale.settlement import SettlementDesk, Verdict
from schemas.clock import now_ms
from schemas.codec import decode, encode
from schemas.events import OrderPlaced
from schemas.ids import OrderId, ProductId, UserId, new_order_id
from schemas.order_state import Status, outcome_of

BATCH = 500  # orders: the maximum per statement in the stages
PURE_TIMES = 5_000
PRODUCT = NewProduct(ProductId(1), "micro", 999, 1_000_000)


class Micro(msgspec.Struct, frozen=True):
    """µs of one operation: median, minimum and maximum of the rounds."""

    what: str
    us: float
    least_us: float
    most_us: float


def micro(what: str, seconds: Sequence[float], operations: int) -> Micro:
    each_us = [value / operations * 1e6 for value in seconds]
    return Micro(what, *(round(value, 2) for value in (statistics.median(each_us), min(each_us), max(each_us))))


async def measure(rounds: int) -> list[Micro]:
    """Start separate servers in a temporary directory; they end with this process at the latest."""
    with tempfile.TemporaryDirectory(prefix="thrones-micro-") as folder:
        async with servers(Path(folder)) as stores:
            desk = SettlementDesk(stores.pool, Inventory(stores.redis), stores.publisher)
            return [*_pure(rounds), *await _batches(stores, desk, rounds)]


@asynccontextmanager
async def servers(folder: Path) -> AsyncIterator[Stores]:
    """Separate servers in `folder`, with a product on sale; deleted at the end."""
    saved = dict(os.environ)
    try:
        os.environ.update(await asyncio.to_thread(start_servers, folder, tied=True))
        os.environ.update({"THRONES_STATE_DIR": str(folder), "THRONES_PROFILE": "development"})
        get_settings.cache_clear()
        await provision(get_settings())
        async with connected(get_settings()) as stores:
            await create_product(stores, PRODUCT)
            yield stores
    finally:
        await asyncio.to_thread(reset, folder, lambda _: None)
        os.environ.clear()
        os.environ.update(saved)
        get_settings.cache_clear()


def _pure(rounds: int) -> list[Micro]:
    settings = SigningSettings(jwt_secret="micro-" * 8)  # type: ignore[arg-type]  # pydantic makes it a secret
    token = sign(1, "user", settings)
    placed = _placed()
    value = encode(placed)

    own = OwnTokens(settings.jwt_secret.get_secret_value())

    def check() -> None:
        assert own.claims_of(token) is not None

    return [
        micro("token check, the first time it is seen", _timed(check, rounds, PURE_TIMES // 10), PURE_TIMES // 10),
        micro("event encode, order.placed", _timed(lambda: encode(placed), rounds, PURE_TIMES), PURE_TIMES),
        micro("event decode, order.placed", _timed(lambda: decode(value), rounds, PURE_TIMES), PURE_TIMES),
    ]


def _placed() -> OrderPlaced:
    return OrderPlaced(
        order_id=new_order_id(),
        product_id=1,
        user_id=12_345,
        quantity=1,
        unit_price_cents=999,
        currency="USD",
        placed_at_ms=now_ms(),
        epoch=1,
        version=54_321,
        available=45_679,
        key_hash="5f" * 32,
    )


def _timed(operation: Callable[[], object], rounds: int, times: int) -> list[float]:
    taken: list[float] = []
    for _ in range(rounds):
        started = time.perf_counter()
        for _ in range(times):
            operation()
        taken.append(time.perf_counter() - started)
    return taken


async def _batches(stores: Stores, desk: SettlementDesk, rounds: int) -> list[Micro]:
    """In each round the same orders pass all steps. The first round, with cold caches and new connections, is not counted."""
    inventory = Inventory(stores.redis)
    taken: dict[str, list[float]] = {}

    async def timed(what: str, work: Awaitable[object]) -> object:
        started = time.perf_counter()
        result = await work
        taken.setdefault(what, []).append(time.perf_counter() - started)
        return result

    for number in range(rounds + 1):
        events = await timed("reserve.lua", reserve(inventory))
        assert isinstance(events, list)
        await timed("stage batch, place_orders", place_rows(stores.pool, events, vouched=False))
        await timed("settle: settle_orders, settle.lua, publish", desk.settle([_verdict(event) for event in events]))
        ids = [OrderId(event.order_id) for event in events]
        rows = (await read_rows(stores.pool, ids)).values()
        moved = await inventory.settle([(row.product_id, row.id, outcome_of(row.status)) for row in rows])
        ends = [terminal_event(row, settlement) for row, settlement in zip(rows, moved, strict=True)]
        await timed("projector, project.lua", inventory.project(ends))
        if number == 0:
            taken.clear()
    return [micro(f"{what} ({BATCH} together)", seconds, BATCH) for what, seconds in taken.items()]


async def reserve(inventory: Inventory) -> list[OrderPlaced]:
    """One batch."""
    answers = await asyncio.gather(*(inventory.reserve(wish) for wish in wishes()))
    events = [decode(answer.value) for answer in answers if isinstance(answer, Held)]
    return [event for event in events if isinstance(event, OrderPlaced)]


def wishes() -> list[Reservation]:
    return [
        Reservation(new_order_id(), UserId(number + 1), PRODUCT.id, 1, PRODUCT.price_cents, PRODUCT.currency)
        for number in range(BATCH)
    ]


def _verdict(event: OrderPlaced) -> Verdict:
    at_ms = now_ms()
    return Verdict(OrderId(event.order_id), Status.CONFIRMED, None, "ch_micro", at_ms, at_ms)


def show(found: Sequence[Micro]) -> str:
    return "\n".join(f"{m.us:9.2f} µs  ({m.least_us:.2f} to {m.most_us:.2f})  {m.what}" for m in found)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(cls=SingleCommand)
def main(rounds: Annotated[int, typer.Option("--rounds", min=1)] = 7) -> None:
    """Microbenchmarks of the hot paths, µs an operation, on servers of their own.

    Example: python -m bench.micro --rounds 15
    """
    typer.echo(show(asyncio.run(measure(rounds))))


if __name__ == "__main__":
    app()
