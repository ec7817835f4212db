"""One generator process: runs its share of a plan over HTTP; returns a tally and writes the client log.

The times of all arrivals are fixed at the start, and every latency is measured from there. So a stalled server cannot slow
down the requests and hide its stall (no coordinated omission).
"""

import asyncio
import base64
import itertools
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from infra.keep_alive import Answer

from .client_log import Answered, ClientLog
from .connections import Connections, NoAnswer, Unreachable
from .plan import Plan, Share, pieces
from .tally import Followed, Tally

Show = Callable[[Tally], object]

FLUSH_INTERVAL_S = 0.25
SOLD_OUT_PAUSE_S = 0.25  # a buyer in a sell-out retries after about this time
NO_SERVER_PAUSE_S = 0.1
PATIENT_INTERVAL_S = 2.5
STATUS_WAIT_S = 20  # the wait of one status request for the end of the order
BAD_ANSWERS_KEPT = 20
UNKNOWN_STATUSES = (500, 502, 504)
TERMINAL = ("confirmed", "payment_failed", "failed")


class _Answer(msgspec.Struct):
    order_id: str | None = msgspec.field(default=None, name="orderId")
    code: str | None = None
    status: str | int | None = None


class _Claims(msgspec.Struct):
    sub: str


@dataclass(frozen=True, slots=True)
class User:
    id: int
    token: str


@dataclass(frozen=True, slots=True)
class Wish:
    """One purchase of a buyer: all its clicks carry the same key and body."""

    user: User
    product: int
    key: str | None
    quantity: int
    request: bytes


def load_users(path: Path, share: Share) -> list[User]:
    """The users of this process: each user belongs to one process only."""
    tokens = msgspec.json.decode(path.read_bytes(), type=list[str])
    return users_of(tokens[share.index :: share.plan.processes] or tokens)


def users_of(tokens: Sequence[str]) -> list[User]:
    return [User(_subject(token), token) for token in tokens]


def _subject(token: str) -> int:
    payload = token.split(".")[1]
    claims = msgspec.json.decode(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)), type=_Claims)
    return int(claims.sub)


class Generator:
    """Runs one share."""

    def __init__(self, share: Share, users: list[User], starts_at_s: float, show: Show | None = None) -> None:
        """`starts_at_s`: epoch seconds, the same for all processes of a run. `show` gets the tally so far."""
        self._share = share
        self._plan: Plan = share.plan
        self._random = random.Random(None if share.plan.seed is None else share.plan.seed * 1_000 + share.index)
        self._users = users
        self._starts_at_s = starts_at_s
        self._ends_s = 0.0
        self._log = ClientLog(share.plan.log)
        self._show = show
        self.tally = Tally()
        self._connections = Connections(share.plan.base_url, self._at_once)
        # Separate, so that following orders and buying do not wait for each other.
        self._status_connections = Connections(share.plan.base_url, share.plan.followers)
        self._numbers = itertools.count()
        self._orders: dict[str, str] = {}  # by key: the order that its first 202 named
        self._decode = msgspec.json.Decoder(_Answer).decode
        self._followers: set[asyncio.Task[None]] = set()
        self._clock_offset_s = time.time() - time.monotonic()
        self._last_accepted_s = 0.0
        self._sold_out_s: float | None = None

    @property
    def _at_once(self) -> int:
        return max(1, pieces(self._plan.connections, self._plan.processes, self._share.index))

    async def run(self) -> Tally:
        starts_s = self._starts_at_s - self._clock_offset_s
        self._ends_s = starts_s + self._plan.seconds
        await asyncio.sleep(max(0.0, starts_s - time.monotonic()))
        cpu_s = time.process_time()
        flushing = asyncio.create_task(self._keep_flushing())
        try:
            await (self._open(starts_s) if self._plan.mode == "open" else self._closed(starts_s))
            self.tally.arrived_s = max(0.001, min(self._ends_s, time.monotonic()) - starts_s)
            self.tally.cpu_s = time.process_time() - cpu_s
            await self._end_following()
        finally:
            flushing.cancel()
            for follower in self._followers:
                follower.cancel()
            self._connections.close()
            self._status_connections.close()
            self._log.close()
        return self.tally

    async def _keep_flushing(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_INTERVAL_S)
            self._log.flush()
            if self._show is not None and self.tally.arrivals:  # before, its first moment is no number that JSON knows
                self._show(self.tally)

    def end(self) -> None:
        """No more arrivals from now on."""
        self._ends_s = min(self._ends_s, time.monotonic())

    async def _open(self, starts_s: float) -> None:
        async with asyncio.TaskGroup() as group:
            for at_s in self._arrivals(starts_s):
                wait_s = at_s - time.monotonic()
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                group.create_task(self._buy(at_s))

    def _arrivals(self, starts_s: float) -> Iterator[float]:
        """Monotonic times. The even arrivals of several processes interleave."""
        plan = self._plan
        if plan.peak_s is not None:
            count = pieces(round(plan.rate * plan.seconds), plan.processes, self._share.index)
            yield from sorted(starts_s + self._random.triangular(0, plan.seconds, plan.peak_s) for _ in range(count))
            return
        gap_s = self._plan.processes / self._plan.rate
        first_s = at_s = starts_s + gap_s * self._share.index / self._plan.processes
        for number in itertools.count(1):
            if at_s >= self._ends_s:
                return
            yield at_s
            # Even arrivals are counted, not added up: as many as were asked for.
            at_s = at_s + self._random.expovariate(1 / gap_s) if self._plan.poisson else first_s + number * gap_s

    async def _closed(self, starts_s: float) -> None:
        self._last_accepted_s = starts_s
        async with asyncio.TaskGroup() as group:
            for _ in range(self._at_once):
                group.create_task(self._click_on())

    async def _click_on(self) -> None:
        while time.monotonic() < self._ends_s and not self._is_sold_out():
            code = await self._buy(time.monotonic())
            if code == "unreachable":
                await asyncio.sleep(NO_SERVER_PAUSE_S)
            elif self._plan.mode == "sell-out" and code != "202":
                await asyncio.sleep(SOLD_OUT_PAUSE_S * self._random.uniform(0.5, 1.5))

    def _is_sold_out(self) -> bool:
        if self._plan.mode != "sell-out" or self._sold_out_s is None:
            return False
        return time.monotonic() - max(self._sold_out_s, self._last_accepted_s) > self._plan.quiet_s

    async def _buy(self, at_s: float) -> str:
        """One purchase with all its clicks. Returns the code of the last answer; `202` if accepted."""
        tally, now_s = self.tally, time.monotonic()
        tally.arrivals += 1
        tally.first_s = min(tally.first_s, at_s + self._clock_offset_s)
        tally.late_ms.append(round((now_s - at_s) * 1000, 2))
        wish = self._wish()
        if wish.key is not None and self._random.random() < self._plan.double_clicks:
            tally.double_clicks += 1
            clicks = [self._click_until_definite(self._same_key(wish), at_s) for _ in range(self._plan.copies - 1)]
            code = (await asyncio.gather(self._click_until_definite(wish, at_s), *clicks))[0]
        else:
            code = await self._click_until_definite(wish, at_s)
        if self._random.random() < self._plan.patient:
            code = await self._click_patiently(wish, code)
        return code

    async def _click_patiently(self, wish: Wish, code: str) -> str:
        """Declined payments put units back on sale: who stays may still get one."""
        until_s = self._starts_at_s - self._clock_offset_s + self._plan.patient_until_s
        while code == "sold_out" and (at_s := time.monotonic() + PATIENT_INTERVAL_S) < until_s:
            await asyncio.sleep(PATIENT_INTERVAL_S)
            code = await self._click_until_definite(wish, at_s)
        return code

    def _wish(self) -> Wish:
        number = next(self._numbers)
        user = self._users[number % len(self._users)]
        keyless = self._plan.keyless > 0 and self._random.random() < self._plan.keyless
        key = None if keyless else f"{self._share.run}-{self._share.index}-{number}"
        product = self._random.choice(self._plan.products)
        low, high = self._plan.quantities
        quantity = low if low == high else self._random.randint(low, high)
        return Wish(user, product, key, quantity, self._request(user, key, product, quantity))

    def _same_key(self, wish: Wish) -> Wish:
        """A copy of the purchase; a share of `changed_bodies` has another quantity under the same key."""
        if self._plan.changed_bodies == 0 or self._random.random() >= self._plan.changed_bodies:
            return wish
        other = wish.quantity + 1
        request = self._request(wish.user, wish.key, wish.product, other)
        return replace(wish, quantity=other, request=request)

    def _request(self, user: User, key: str | None, product: int, quantity: int) -> bytes:
        body = f'{{"productId":{product}}}' if quantity == 1 else f'{{"productId":{product},"quantity":{quantity}}}'
        key_line = "" if key is None else f"Idempotency-Key: {key}\r\n"
        return (
            f"POST /api/order/buy-flash HTTP/1.1\r\nHost: {self._connections.host}\r\n"
            f"Authorization: Bearer {user.token}\r\n{key_line}"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        ).encode()

    async def _click_until_definite(self, wish: Wish, at_s: float) -> str:
        """Click, and repeat with the same key while the outcome is unknown or the answer is retryable."""
        for tries_left in range(self._plan.retries, -1, -1):
            code, again_after_s = await self._click(wish, at_s)
            if again_after_s is None or tries_left == 0:
                break
            await asyncio.sleep(again_after_s)
            at_s = time.monotonic()
        return code

    async def _click(self, wish: Wish, at_s: float) -> tuple[str, float | None]:
        """One request. Returns its code, and the seconds until a client would retry (None: it would not)."""
        plan = self._plan
        timeout_s = plan.timeout_s if plan.drop_after_ms is None else plan.drop_after_ms / 1000
        self.tally.requests += 1
        try:
            reply = await self._connections.ask(wish.request, timeout_s)
        except Unreachable:
            self._record(wish, at_s, "R", None, "unreachable", None)  # never sent, so it had no effect
            return "unreachable", NO_SERVER_PAUSE_S
        except NoAnswer as error:
            self._record(wish, at_s, "U", None, str(error), None)
            return str(error), 0.0 if wish.key is not None else None
        return self._read(wish, at_s, reply)

    def _read(self, wish: Wish, at_s: float, reply: Answer) -> tuple[str, float | None]:
        status = reply.status
        try:
            answer = self._decode(reply.body)
        except msgspec.DecodeError:
            answer = _Answer()
        self._check(reply, answer)
        if status == 202:
            self._record(wish, at_s, "A", reply, "", answer.order_id)
            self._record_order(wish, answer.order_id, at_s)
            return "202", None
        code = answer.code or ""
        self._record(wish, at_s, "U" if status in UNKNOWN_STATUSES else "R", reply, code, answer.order_id)
        if code == "sold_out":
            self._sold_out_s = self._sold_out_s or time.monotonic()
        if status in UNKNOWN_STATUSES:
            return code, 0.0 if wish.key is not None else None
        return code, float(reply.header("retry-after") or 1) if status in (429, 503) else None

    def _check(self, reply: Answer, answer: _Answer) -> None:
        """Check what the interface guarantees for every answer."""
        if reply.status == 202:
            self._expect(answer.order_id is not None, reply, "202 without an order id")
            location = f"/api/order/{answer.order_id}/status"
            self._expect(reply.header("location") == location, reply, "202 without its Location")
            return
        self._expect(reply.status != 500 and bool(answer.code), reply, "an undocumented answer")
        if reply.status in (429, 503):
            self._expect(reply.header("retry-after") is not None, reply, "no Retry-After")

    def _expect(self, holds: bool, reply: Answer, what: str) -> None:
        if not holds and len(self.tally.bad_answers) < BAD_ANSWERS_KEPT:
            self.tally.bad_answers.append(f"{what}: {reply.status} {dict(reply.headers)!r} {reply.body[:300]!r}")

    def _record(
        self, wish: Wish, at_s: float, outcome: str, reply: Answer | None, code: str, order: str | None
    ) -> None:
        tally, now_s, status = self.tally, time.monotonic(), reply.status if reply else 0
        latency_ms = round((now_s - at_s) * 1000, 2)
        latencies = {"A": tally.accepted_ms, "R": tally.refused_ms, "U": tally.unknown_ms}
        latencies[outcome].append(latency_ms)
        tally.outcomes[outcome] += 1
        tally.answers[f"{status} {code}".rstrip()] += 1
        at = now_s + self._clock_offset_s
        tally.last_s = max(tally.last_s, at)
        self._log.add(
            Answered(
                at_ms=int(at * 1000),
                user=wish.user.id,
                product=wish.product,
                key=wish.key,
                order=order,
                outcome=outcome,
                status=status,
                code=code,
                latency_ms=latency_ms,
                quantity=wish.quantity,
                retry_after=reply.header("retry-after") if reply and status in (429, 503) else None,
            )
        )

    def _record_order(self, wish: Wish, order: str | None, at_s: float) -> None:
        if order is None:
            return
        self._last_accepted_s = time.monotonic()
        known = self._orders.setdefault(wish.key or order, order)
        if known is not order:  # a repeat of the same purchase must have the same order
            if known != order:
                self.tally.two_orders.append(f"user {wish.user.id} key {wish.key}: {known} and {order}")
            return
        self.tally.orders += 1
        if self._random.random() < self._plan.follow:
            task = asyncio.create_task(self._follow(wish.user, order, at_s))
            self._followers.add(task)
            task.add_done_callback(self._followers.discard)

    async def _follow(self, user: User, order: str, at_s: float) -> None:
        accepted_s = time.monotonic()
        until_s = accepted_s + self._plan.follow_s
        while time.monotonic() < until_s:
            status = await self._status(user, order)
            if status in TERMINAL:
                ended_s = time.monotonic()
                self.tally.completed_ms.append(round((ended_s - accepted_s) * 1000, 1))
                times_ms = [
                    round((moment_s + self._clock_offset_s) * 1000, 1) for moment_s in (at_s, accepted_s, ended_s)
                ]
                self.tally.followed.append(Followed(order, *times_ms))
                self.tally.ends[status] += 1
                return
        self.tally.ends["not ended"] += 1

    async def _status(self, user: User, order: str) -> str:
        request = (
            f"GET /api/order/{order}/status?wait={STATUS_WAIT_S} HTTP/1.1\r\n"
            f"Host: {self._status_connections.host}\r\nAuthorization: Bearer {user.token}\r\n\r\n"
        ).encode()
        try:
            reply = await self._status_connections.ask(request, STATUS_WAIT_S + 5.0)
            answer = self._decode(reply.body)
        except (Unreachable, NoAnswer, msgspec.DecodeError):
            reply, answer = None, _Answer()
        if reply is None or reply.status != 200:
            if reply is not None and reply.status == 404:
                self._expect(False, reply, f"a live order is denied: {order}")
            await asyncio.sleep(0.5)
            return ""
        return str(answer.status)

    async def _end_following(self) -> None:
        if self._followers:
            await asyncio.gather(*self._followers)


def generate(share: Share, users: list[User], starts_at_s: float, show: Show | None = None) -> Tally:
    """Run a share in this process, on uvloop."""
    import uvloop

    async def main() -> Tally:
        generator = Generator(share, users, starts_at_s, show)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, generator.end)
        return await generator.run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())
