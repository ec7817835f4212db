"""Who buys and who watches: wishes as HTTP requests to a gateway, repeated with the same key; stock streams; what they noted."""

import asyncio
import json
import re
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from multidict import CIMultiDict

from gateway.http.problems import Problem
from infra.redis.client import RedisError
from sale.books.key_record import key_hash
from schemas.ids import ProductId

from .actors import Actor

Wish = tuple[int, str | None, int]  # user, hash of the key, the day: keys are remembered for one
EVENT = re.compile(rb'id: (\d+)\.(\d+)\ndata: \{"productId":\d+,"stock":(\d+)\}')
WISHES_PER_S = 6.0
WATCHES_PER_WISH = 0.05
AGAIN_PER_WISH = 0.1
# What a wish that was accepted before cannot be told, whatever has become of the sale.
NEVER_AGAIN = frozenset({"sold_out", "user_limit", "sale_closed", "sale_not_open", "sale_paused"})
DRAWN: ContextVar[list[str]] = ContextVar("drawn")  # the order ids that a gateway drew for one request


@dataclass
class Clients:
    """What the buyers wrote down."""

    accepted: dict[str, Wish] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)  # a 504 named them, or nobody answered
    refused: set[str] = field(default_factory=set)  # also where the answer was another order's 202
    waiting: int = 0


class _Content:
    """A body that came with its headers."""

    def __init__(self, body: bytes) -> None:
        self._body, self.total_bytes = body, len(body)

    def is_eof(self) -> bool:
        return True

    def read_nowait(self, _: int) -> bytes:
        return self._body


class Request:
    """As much of aiohttp's as the hot path reads."""

    def __init__(self, user: int, product: ProductId, quantity: int, key: str | None) -> None:
        body = json.dumps({"productId": product, "quantity": quantity}).encode()
        self.user, self.key, self.content, self.content_length = user, key, _Content(body), len(body)
        self.headers = CIMultiDict({"Content-Type": "application/json"})
        if key is not None:
            self.headers["Idempotency-Key"] = key


class Watcher:
    """A reader of a stock stream: ids only grow."""

    def __init__(self, world: Any, product: ProductId) -> None:
        self._world, self.product = world, product
        self.last: tuple[int, int] = (-1, -1)
        self.stock = -1
        self.cut = False
        self.closed = asyncio.get_running_loop().create_future()

    def push(self, frame: Any) -> bool:
        match = EVENT.match(frame.plain)
        if match is not None:
            version = int(match[1]), int(match[2])
            if version <= self.last:
                self._world.verdict.violated(f"I10: product {self.product}: {version} after {self.last}")
            self.last, self.stock = version, int(match[3])
        return True


class Crowd:
    """Everybody who wants something."""

    def __init__(self, world: Any) -> None:
        self._world = world
        self.clients = Clients()
        self.watchers: list[tuple[Actor, Watcher]] = []
        self._keyed: list[Request] = []  # accepted with a key, for those who ask again
        self._told_by_wish: dict[Wish, list[str]] = {}

    async def come(self) -> None:
        """Wishes until there have been enough steps; more than there is to sell."""
        world = self._world
        while world.steps < world.steps_wanted:
            user, product = world.random.randint(1, 12), world.random.choice(world.products)
            key = f"key-{world.random.randint(1, 30)} of {product}" if world.chance(0.4) else None
            quantity = world.random.choice((1, 1, 1, 2, 3, 5)) if key is None else 1 + len(key) % 5
            request = Request(user, product, quantity, key)
            if self._keyed and world.chance(AGAIN_PER_WISH):
                request = world.random.choice(self._keyed)
            for _ in range(2 if world.chance(0.1) and request.key else 1):  # a double click
                self.clients.waiting += 1
                world.loop.create_task(self._buy(request))
            if world.chance(WATCHES_PER_WISH):
                world.loop.create_task(self._watch(product))
            await asyncio.sleep(world.random.expovariate(WISHES_PER_S))
        for product in world.products:
            await self._watch(product)

    async def _buy(self, request: Request) -> None:
        """One wish; with a key it is repeated until the answer is definite, as a good client does."""
        day = self._world.striker.day
        hashed = None if request.key is None else key_hash(request.key)
        for _ in range(5):
            if not await self._ask(request, (request.user, hashed, day)) or request.key is None:
                break
            await asyncio.sleep(self._world.random.uniform(0.1, 3.0))
            if self._world.striker.day != day:
                break
        self.clients.waiting -= 1

    async def _ask(self, request: Request, wish: Wish) -> bool:
        """Whether the outcome is unknown."""
        gateways = self._world.processes.gateways
        if not gateways:
            return False
        actor, told_before = self._world.random.choice(list(gateways)), self._told(wish)
        drawn: list[str] = []
        DRAWN.set(drawn)
        asked = actor.spawn(gateways[actor].buy(request))
        await asyncio.wait((asked,))
        error = None if asked.cancelled() else asked.exception()
        if asked.cancelled() or (isinstance(error, Problem) and error.code == "outcome_unknown"):
            self.clients.unknown.update(drawn)
            return True
        if error is None:
            self._note_accepted(request, json.loads(asked.result().body)["orderId"], wish, drawn)
        elif isinstance(error, Problem):
            self.clients.refused.update(drawn)
            if told_before and error.code in NEVER_AGAIN:
                self._world.verdict.violated(f"I7: {error.code}, although its key was accepted for {told_before}")
        else:
            raise error
        return False

    def _told(self, wish: Wish) -> str | None:
        """The order this wish was accepted for, unless it was lost since."""
        of_wish = [id_ for id_ in self._told_by_wish.get(wish, ()) if id_ not in self._world.striker.lost]
        return of_wish[0] if of_wish and wish[1] is not None else None

    def _note_accepted(self, request: Request, order_id: str, wish: Wish, drawn: list[str]) -> None:
        self.clients.accepted[order_id] = wish
        self.clients.refused.update(id_ for id_ in drawn if id_ != order_id)
        self._told_by_wish.setdefault(wish, []).append(order_id)
        if request.key is not None:
            self._keyed.append(request)

    async def _watch(self, product: ProductId) -> None:
        hubs = self._world.processes.hubs
        if not hubs:
            return
        actor = self._world.random.choice(list(hubs))
        watcher = Watcher(self._world, product)
        await asyncio.wait((actor.spawn(self._join(actor, watcher)),))

    async def _join(self, actor: Actor, watcher: Watcher) -> None:
        hub = self._world.processes.hubs[actor]
        try:
            read = await hub.read(watcher.product)
        except RedisError:
            return
        if read is not None:
            hub.join(watcher.product, watcher, read)
            self.watchers.append((actor, watcher))
