"""A stack of the measurement's own: an empty state directory in; sales on it, their counts, CPU and books out."""

import asyncio
import json
import os
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from bench import own_stack
from bench.buyers import run
from bench.own_stack import thrones
from bench.plan import Plan
from bench.tally import Result
from infra.local.stack import use_stack_env
from infra.redis.client import Redis, connect_redis
from infra.settings import Settings, get_settings
from sale.books.books import Books
from sale.operations.operations import REFERENCE_PRODUCT
from schemas.ids import ProductId

from . import cpu
from .report import BooksNote, Report

# A shell may have these from `thrones env`: they would send our stack's processes to another one's servers.
FOREIGN = (
    "KAFKA_BOOTSTRAP_SERVERS",
    "REDIS_URL",
    "POSTGRES_DSN",
    "DB_HOST",
    "DB_PORT",
    "POSTGRES_USER",
    "POSTGRES_PASSWORD",
    "POSTGRES_DB",
    "PAYMENT_GATEWAY_URL",
    "JWT_SECRET",
    "THRONES_PROFILE",
    "THRONES_ROLE",
    "THRONES_MEMBER",
    "MAX_HELD",
)
USERS = 20_000
POLL_INTERVAL_S = 0.1
FAIR = {"hang": 0.0, "unavailable": 0.0, "rate_limited": 0.0}
PROBLEMS_KEPT = 5
AUDIT_TIMEOUT_S = 900.0  # it reads the whole log


class TooSlow(Exception):
    """What was waited for did not come in time."""


class Counts(NamedTuple):
    """Orders of one unit each since the product's books were opened."""

    accepted: int
    settled: int
    ended: int  # terminal for clients too: the projector has read the end


@dataclass(slots=True)
class Stack:
    state_dir: Path
    url: str
    tokens: Path
    settings: Settings
    redis: Redis
    product_ids: Iterator[int] = field(default_factory=lambda: count(1 + REFERENCE_PRODUCT.id))  # no run shares one

    def sale(self, report: Report, name: str, stock: int = 400_000) -> "MeasuredSale":
        """A product of this run's own, so that its books are this run's."""
        print(f"{'':10}{name}", file=sys.stderr, flush=True)
        product = next(self.product_ids)
        words = ("--id", str(product), "--name", name, "--price", "9.99", "--stock", str(stock))
        thrones("product", "create", *words)
        return MeasuredSale(self, report, name, ProductId(product), self.state_dir / f"clients-{product}.jsonl")

    def cpu(self) -> cpu.Seconds:
        return cpu.read(self.state_dir)

    def weather(self, **changes: float) -> None:
        """Of the mock payment gateway, from now on."""
        url = f"{self.settings.payment_gateway_url}/weather"
        request = urllib.request.Request(url, json.dumps(changes).encode(), method="PUT")  # noqa: S310 - our own
        urllib.request.urlopen(request, timeout=10).close()  # noqa: S310


@dataclass(slots=True)
class MeasuredSale:
    """One product's sale: load on it, what became of it, its books."""

    stack: Stack
    report: Report
    name: str
    product: ProductId
    log: Path

    async def buy(self, processes: int = 1, stop: asyncio.Event | None = None, **plan: object) -> Result:
        """Do a plan; noted with what the load generator itself cost."""
        options = {"base_url": self.stack.url, "tokens": str(self.stack.tokens), "products": (self.product,), **plan}
        result = await run(Plan(processes=processes, log=str(self.log), **options), stop)  # type: ignore[arg-type]  # a measurement's options
        self.report.note_generator(self.name, result, processes)
        return result

    async def counts(self) -> Counts:
        now = await Books(self.stack.redis).progress(self.product)
        accepted = (now.version + now.held) // 2  # every order here is one unit
        return Counts(accepted, now.version - accepted, accepted - now.entries)

    async def until_ended(self, share: float = 1.0, deadline_s: float = 300.0) -> Counts:
        """Wait for so many of the accepted orders to end. Raises TooSlow."""
        until = time.monotonic() + deadline_s
        while (counts := await self.counts()).ended < share * counts.accepted:
            if time.monotonic() > until:
                raise TooSlow(f"{self.name}: {counts.ended} of {counts.accepted} orders ended in {deadline_s:.0f} s")
            await asyncio.sleep(POLL_INTERVAL_S)
        return counts

    async def check_books(self, deadline_s: float = 300.0) -> None:
        """Let the rest end in fair weather, then audit; noted in the report. Raises TooSlow."""
        self.stack.weather(**FAIR)
        await self.until_ended(deadline_s=deadline_s)
        words = ["--product", str(self.product), "--wait", "60", "--json"]
        if self.log.exists():  # orders that no client sent are in no client's log
            words += ["--client-log", str(self.log)]
        said = await asyncio.to_thread(thrones, "audit", *words, timeout_s=AUDIT_TIMEOUT_S, failing=True)
        audit = json.loads(said.splitlines()[0])
        accepted = (await self.counts()).accepted
        self.report.books.append(BooksNote(self.name, accepted, audit["ok"], audit["problems"][:PROBLEMS_KEPT]))
        self.log.unlink(missing_ok=True)


@asynccontextmanager
async def own_stack_running(
    state_dir: Path, settings: Mapping[str, str] = MappingProxyType({})
) -> AsyncIterator[Stack]:
    """A new stack on free ports, deleted in the end; this process' environment names it meanwhile.

    Raises CommandFailed when it does not come up.
    """
    saved = dict(os.environ)
    for name in FOREIGN:
        os.environ.pop(name, None)
    os.environ.update({"THRONES_STATE_DIR": str(state_dir), "PORT": "0", **settings})
    thrones("reset")
    try:
        thrones("up")
        del os.environ["PORT"]
        use_stack_env(state_dir)
        get_settings.cache_clear()
        redis = connect_redis(get_settings(), timeout_s=10.0)
        try:
            url = own_stack.own_url()
            yield Stack(state_dir, url, own_stack.ensure_tokens(USERS, url), get_settings(), redis)
        finally:
            await redis.aclose()
    finally:
        thrones("reset")
        os.environ.clear()
        os.environ.update(saved)
        get_settings.cache_clear()
