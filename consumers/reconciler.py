"""Resolves orders whose payment is unknown: it asks the provider again with the same key, ever slower, until the answer is definite.

"Not found" decides nothing. After the provider's key lifetime only an operator settles the order (`thrones settle`).
"""

import asyncio

import asyncpg
from msgspec.structs import replace

from infra.backoff import jittered
from infra.kafka.publisher import Publisher
from infra.lifecycle import Stop, background, cancelled
from infra.logs import get_logger
from infra.metrics.definitions import RECONCILIATION_EXPIRED, RECONCILIATION_OLDEST, RECONCILIATION_ORDERS
from infra.postgres.pool import UNAVAILABLE, connect_postgres
from infra.redis.client import connect_redis
from infra.settings import Settings
from infra.waits import retry_until_ok
from sale.books.inventory import Inventory
from sale.orders import OrderRow
from sale.payments.breaker import CircuitBreaker
from sale.payments.charging import Charge, Unsettled, charge_once
from sale.payments.provider import ASKED_FOR, Captured, Declined, HttpPaymentProvider, PaymentProvider
from sale.settlement import IN_HAND_AFTER_S, SettlementDesk, Verdict
from sale.tables.queries import SQL
from schemas.clock import Moment, now_ms
from schemas.ids import OrderId
from schemas.order_state import TERMINAL, Status

MAX_BATCH = 200  # charges per round
MAX_ROWS = 5_000  # rows read to find due ones, so that orders asked about recently delay no others
PAUSE_S = 1.0  # between rounds
SLOWEST_S = 60.0  # between two requests about one order

_orders, _oldest, _expired = RECONCILIATION_ORDERS.make(), RECONCILIATION_OLDEST.make(), RECONCILIATION_EXPIRED.make()
log = get_logger()


class Reconciler:
    """Works through needs_reconciliation, oldest first; it asks about each order after 1, 2, 4 ... at most 60 s."""

    def __init__(self, desk: SettlementDesk, provider: PaymentProvider) -> None:
        self._desk = desk
        self._provider = provider
        self._breaker = CircuitBreaker()
        self._next_question: dict[OrderId, tuple[float, float]] = {}  # order -> (loop time, pause that led to it)

    async def reconcile(self, rows: list[OrderRow]) -> int:
        """Asks about the oldest due rows; returns how many became definite. Cancelling it is safe."""
        self._forget_all_but(rows)
        due = [row for row in rows if self._is_due(row)][:MAX_BATCH]
        verdicts = [verdict for verdict in await asyncio.gather(*map(self._ask, due)) if verdict is not None]
        written = await self._desk.record(verdicts)
        ended = [row for row in written if row.status in TERMINAL]
        await self._desk.conclude(ended)
        for row in written:
            if row.status not in TERMINAL:
                self._schedule_retry(row.id)  # its answer cannot be stored
        return len(ended)

    async def _ask(self, row: OrderRow) -> Verdict | None:
        started = row.charge_started_at_ms or now_ms()
        outcome = await charge_once(
            self._provider, self._breaker, Charge.of(row), lambda: row.seen.ago_s() <= IN_HAND_AFTER_S
        )
        match outcome:
            case Captured(charge_id=charge_id):
                return Verdict(row.id, Status.CONFIRMED, None, charge_id, started, now_ms())
            case Declined(reason=reason):
                return Verdict(row.id, Status.PAYMENT_FAILED, reason, None, started, now_ms())
            case Unsettled():
                return None  # the next round reads the row again and decides whether to ask
            case _:
                self._schedule_retry(row.id)
                return None

    def _is_due(self, row: OrderRow) -> bool:
        at, _ = self._next_question.get(row.id, (0.0, 0.0))
        return asyncio.get_running_loop().time() >= at

    def _schedule_retry(self, order_id: OrderId) -> None:
        _, pause_s = self._next_question.get(order_id, (0.0, 0.5))
        pause_s = min(pause_s * 2, SLOWEST_S)
        self._next_question[order_id] = (asyncio.get_running_loop().time() + jittered(pause_s), pause_s)

    def _forget_all_but(self, rows: list[OrderRow]) -> None:
        open_ids = {row.id for row in rows}
        self._next_question = {id_: at for id_, at in self._next_question.items() if id_ in open_ids}


async def run(settings: Settings, stop: Stop) -> None:
    """Reconciles until asked to stop. Two at once are harmless: same key, guarded rows, idempotent settling."""
    pool = await connect_postgres(settings, maximum=2)
    redis = connect_redis(settings, timeout_s=2.0)
    publisher = await Publisher.start(settings)
    try:
        async with HttpPaymentProvider(settings.payment_gateway_url) as provider:
            reconciler = Reconciler(SettlementDesk(pool, Inventory(redis), publisher), provider)
            async with background(_reconcile_in_rounds(reconciler, pool)):
                await stop.wait()  # a round may wait for the provider for ever
    finally:
        await publisher.stop()
        await redis.aclose()
        await pool.close()


async def _reconcile_in_rounds(reconciler: Reconciler, pool: asyncpg.Pool) -> None:
    while not cancelled():
        await asyncio.sleep(PAUSE_S)
        asked = Moment()  # the figures are as old as this query
        records = await retry_until_ok("postgres", UNAVAILABLE, pool.fetch, SQL.unsettled_payments, ASKED_FOR, MAX_ROWS)
        rows = [replace(OrderRow.of(record), seen=asked) for record in records]
        _set_gauges(rows, await retry_until_ok("postgres", UNAVAILABLE, pool.fetchval, SQL.expired_payments, ASKED_FOR))
        settled = await reconciler.reconcile(rows)
        if settled:
            log.info("reconciled", orders=settled)


def _set_gauges(rows: list[OrderRow], expired: int) -> None:
    _orders.set(len(rows))
    _oldest.set(max((row.age_s() for row in rows), default=0.0))
    _expired.set(expired)
