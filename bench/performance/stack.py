"""A separate stack for a measurement: sales on it, their counts, CPU and books."""

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

# A shell may have these from `thrones env`; they would connect the new stack's processes to other servers.
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
    """A wait has exceeded its time limit."""


class Counts(NamedTuple):
    """Orders of one unit each since the opening of the product's books."""

    accepted: int
    settled: int
    ended: int  # terminal for clients: the projector has read the end


@dataclass(slots=True)
class Stack:
    state_dir: Path
    url: str
    tokens: Path
    settings: Settings
    redis: Redis
    product_ids: Iterator[int] = field(default_factory=lambda: count(1 + REFERENCE_PRODUCT.id))  # each run has its own

    def sale(self, report: Report, name: str, stock: int = 400_000) -> "MeasuredSale":
        """Create a product for this run only, so that its books contain only this run."""
        print(f"{'':10}{name}", file=sys.stderr, flush=True)
        product = next(self.product_ids)
        words = ("--id", str(product), "--name", name, "--price", "9.99", "--stock", str(stock))
        thrones("product", "create", *words)
        return MeasuredSale(self, report, name, ProductId(product), self.state_dir / f"clients-{product}.jsonl")

    def cpu(self) -> cpu.Seconds:
        return cpu.read(self.state_dir)

    def weather(self, **changes: float) -> None:
        """Set the weather of the mock payment gateway."""
        url = f"{self.settings.payment_gateway_url}/weather"
        request = urllib.request.Request(url, json.dumps(changes).encode(), method="PUT")  # noqa: S310 - our own
        urllib.request.urlopen(request, timeout=10).close()  # noqa: S310


@dataclass(slots=True)
class MeasuredSale:
    """The sale of one product: its load, its results, its books."""

    stack: Stack
    report: Report
    name: str
    product: ProductId
    log: Path

    async def buy(self, processes: int = 1, stop: asyncio.Event | None = None, **plan: object) -> Result:
        """Run a plan, and record it with the load generator's own cost."""
        options = {"base_url": self.stack.url, "tokens": str(self.stack.tokens), "products": (self.product,), **plan}
        result = await run(Plan(processes=processes, log=str(self.log), **options), stop)  # type: ignore[arg-type]  # a measurement's options
        self.report.record_generator(self.name, result, processes)
        return result

    async def counts(self) -> Counts:
        now = await Books(self.stack.redis).progress(self.product)
        accepted = (now.version + now.held) // 2  # every order here is one unit
        return Counts(accepted, now.version - accepted, accepted - now.entries)

    async def wait_until_ended(self, share: float = 1.0, deadline_s: float = 300.0) -> Counts:
        """Wait until this share of the accepted orders has ended. Raises TooSlow."""
        until = time.monotonic() + deadline_s
        while (counts := await self.counts()).ended < share * counts.accepted:
            if time.monotonic() > until:
                raise TooSlow(f"{self.name}: {counts.ended} of {counts.accepted} orders ended in {deadline_s:.0f} s")
            await asyncio.sleep(POLL_INTERVAL_S)
        return counts

    async def check_books(self, deadline_s: float = 300.0) -> None:
        """Let the other orders end in fair weather, audit, and record the result. Raises TooSlow."""
        self.stack.weather(**FAIR)
        await self.wait_until_ended(deadline_s=deadline_s)
        words = ["--product", str(self.product), "--wait", "60", "--json"]
        if self.log.exists():  # only orders that clients sent are in the client log
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
    """A new stack on free ports, deleted at the end. Within the context the environment of this process names it.

    Raises CommandFailed if it does not start.
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
