"""The fault table: its rows, in the order in which they are run. Bounds are those of the page that asked for them."""

import contextlib
import signal
from collections.abc import AsyncIterator

from tests.integration.fault_proxy import fault_proxy

from . import faults, intruders
from .figures import (
    GROWN_MAX_PERCENT,
    Figure,
    accepted_share,
    answered,
    declined_share,
    during_refusal_ms,
    goodput,
    keeps_up_again,
    measured,
    most_behind,
    orders,
    quiet,
    refusal_ms,
    resets,
    sells_again,
    units,
    unknown,
    unknown_seconds,
    unsold,
)
from .rows import CALM, Row, Through
from .trial import Trial


@contextlib.asynccontextmanager
async def losing_replies(trial: Trial, share: float) -> AsyncIterator[str]:
    """A gateway beside the others between which and Redis a share of the replies is lost; its URL."""
    port = int(trial.ground.env()["REDIS_URL"].rpartition(":")[2].partition("/")[0])
    async with fault_proxy("127.0.0.1", port) as proxy:
        proxy.dice, proxy.only_after = trial.dice, b"EVALSHA"
        async with trial.ground.gateway_aside(REDIS_URL=f"redis://127.0.0.1:{proxy.port}/0") as url:
            proxy.lose_share = share
            yield url
            proxy.lose_share = 0.0
        trial.measured["replies lost"] = proxy.lost


def losing(share: float) -> Through:
    return lambda trial: losing_replies(trial, share)


OVERLOAD = 3.0
QUIET = Figure("quiet after", "s", quiet, at_most=60, timed=True)


def sells_within(seconds: float) -> Figure:
    return Figure("sells again after", "s", sells_again, at_most=seconds, timed=True)


ROWS = (
    Row(
        "storm",
        "none: a storm on one product of 1,000 units, a third of the clicks double",
        "I1-I7 I11",
        plan={"mode": "sell-out", "connections": 256, "double_clicks": 0.3, "quiet_s": 2.0, "timeout_s": 10.0},
        figures=(
            Figure("confirmed", "units", units("confirmed"), at_least=1_000, at_most=1_000),
            Figure("unsold", "units", unsold, at_most=0),
            QUIET,
        ),
        load=0,
        stock=1_000,
        weather=CALM,
        seconds=60.0,
        short_s=40.0,
    ),
    Row(
        "steady",
        "none, at L, on a stack that has sold before",
        "I1-I9 I11 I12",
        figures=(
            Figure("a process's memory grown", "%", measured("memory grown"), at_most=GROWN_MAX_PERCENT, timed=True),
            Figure("a process's open files grown", "%", measured("files grown"), at_most=GROWN_MAX_PERCENT, timed=True),
            Figure("accepted", "%", accepted_share, at_least=100),
            QUIET,
        ),
        seconds=60.0,
        rest_s=60.0,
    ),
    Row(
        "limits",
        "none: quantities 1-5, 997 units, at most 2 a user",
        "I1-I7 I11",
        plan={"mode": "sell-out", "connections": 128, "quantities": (1, 5), "double_clicks": 0.3, "quiet_s": 3.0},
        figures=(Figure("unsold", "units", unsold, at_most=4), QUIET),
        load=0,
        stock=997,
        options=("--per-user-limit", "2"),
        weather=CALM,
        seconds=60.0,
    ),
    Row(
        "same-key",
        "each key 50 times at once, 1 copy in 10 with another body",
        "I1-I9 I11",
        plan={"double_clicks": 1.0, "copies": 50, "changed_bodies": 0.1},
        figures=(Figure("changed bodies refused (422)", "answers", answered("422"), at_least=1), QUIET),
        load=0.02,
        short_s=8.0,
    ),
    Row(
        "hang-up",
        "clients hang up after 3 ms and ask again with the same key, 5 times",
        "I1-I9",
        plan={"drop_after_ms": 3, "retries": 5},
        figures=(Figure("left without an answer", "requests", unknown, at_least=1), QUIET),
        load=0.5,
    ),
    Row(
        "each-process",
        "kill -9 of every gateway worker, stage and keeper, one after the other",
        "I1-I9 I11",
        faults.kill_each_process,
        figures=(
            Figure("replaced after", "s", measured("replaced"), at_most=20),
            Figure("accepted", "%", accepted_share, at_least=95),
            Figure("left unknown, of a second's wishes", "", unknown_seconds, at_most=1),
            QUIET,
        ),
        short_s=10.0,
    ),
    Row(
        "each-server",
        "kill -9 of redis, kafka, postgres and the provider, one after the other",
        "I1-I9 I11",
        faults.kill_each_server,
        figures=(Figure("sells again after", "s", sells_again, at_most=45), QUIET),
        short_s=10.0,
    ),
    Row(
        "supervisor",
        "kill -9 of the supervisor: its children stop; then `thrones up`",
        "I1-I9 I11",
        faults.kill_supervisor,
        figures=(
            Figure("sells again after", "s", sells_again, at_most=45),
            Figure("left unknown, of a second's wishes", "", unknown_seconds, at_most=1),
            QUIET,
        ),
        short_s=8.0,
    ),
    Row(
        "gateway-kill",
        "kill -9 of a random gateway worker every 5 s",
        "I1-I9 I11",
        faults.kill_every(5.0, ["gateway"]),
        figures=(
            Figure("replaced after", "s", measured("replaced"), at_most=3, timed=True),
            sells_within(3),
            QUIET,
        ),
    ),
    Row(
        "stages",
        "order and payment stage: kill -9, and SIGSTOP for 10 s",
        "I1-I9 I11",
        faults.kill_and_pause_stages,
        weather=CALM,  # one charge that hangs holds back its partition's commits: that is not being behind
        figures=(
            Figure("less than 1 s further behind than before, after", "s", keeps_up_again, at_most=20, timed=True),
            QUIET,
        ),
        seconds=60.0,
        after_s=15.0,
        short_s=16.0,
    ),
    Row(
        "payment-kill",
        "kill -9 of the payment stage every 4 s, a third of the provider's answers lost",
        "I1-I9 I11",
        faults.kill_every(4.0, ["payment-stage"]),
        weather={**CALM, "reset_after_capture": 0.3},
        figures=(QUIET,),
    ),
    Row(
        "relay",
        "kill -9 of relay and gateway workers in turn, every 3 s",
        "I1-I9 I11",
        faults.kill_every(3.0, ["relay", "gateway"]),
        weather=CALM,
        figures=(Figure("everything pushed on and ended after", "s", quiet, at_most=12, timed=True), QUIET),
    ),
    Row(
        "rolling-restart",
        "SIGTERM of every process, one after the other",
        "I1-I9 I11",
        faults.rolling_restart,
        figures=(
            Figure("resets", "answers", resets, at_most=0),
            Figure("slowest exit", "s", measured("exit"), at_most=25),
            QUIET,
        ),
        short_s=10.0,
    ),
    Row(
        "everything",
        "kill -9 of everything at once, servers and supervisor too; started again",
        "I1-I9 I11",
        faults.everything_at_once,
        figures=(Figure("up again after", "s", measured("up again"), at_most=60, timed=True), QUIET),
        after_s=10.0,
        short_s=10.0,
    ),
    Row(
        "members",
        "a member of a stage added or removed every 10 s",
        "I1-I9 I11",
        faults.change_members,
        figures=(Figure("furthest behind", "s", most_behind, at_most=20, timed=True), QUIET),
        seconds=40.0,
    ),
    Row(
        "broker-killed",
        "the broker killed, away for 30 s",
        "I1-I9 I11",
        faults.away("kafka", 30.0),
        figures=(sells_within(10), QUIET),
        seconds=30.0,
        after_s=15.0,
    ),
    Row(
        "broker-hangs",
        "the broker stopped (SIGSTOP) for 60 s",
        "I1-I9 I11",
        faults.paused("kafka", 60.0),
        figures=(sells_within(10), QUIET),
        seconds=60.0,
        after_s=15.0,
    ),
    Row(
        "redis-killed",
        "redis killed, started again 5 s later",
        "I1-I9 I11",
        faults.away("redis", 5.0),
        figures=(
            Figure("refusals while it is away, p99", "ms", during_refusal_ms(0.99), at_most=250, timed=True),
            sells_within(10),
            QUIET,
        ),
        after_s=15.0,
    ),
    Row(
        "redis-killed-late",
        "redis killed in a sale that never rests, after 100,000 orders have ended",
        "I1-I9 I11",
        faults.after_orders(100_000, faults.away("redis", 5.0)),
        figures=(
            Figure("refused as busy", "answers", answered("busy"), at_most=0, timed=True),
            sells_within(10),
            QUIET,
        ),
        seconds=900.0,
        after_s=30.0,
        stock=2_000_000,
    ),
    Row(
        "product-closed",
        "the books of another product closed for a minute, with its orders under way",
        "I1-I9 I11",
        faults.closed_beside,
        figures=(
            Figure("longest behind", "s", most_behind, at_most=5, timed=True),
            Figure("accepted", "%", accepted_share, at_least=99, timed=True),
            QUIET,
        ),
        weather=CALM,  # a charge that hangs for 10 s would keep its record as long
        seconds=75.0,
    ),
    Row(
        "redis-replies-lost",
        "1 in 20 of redis's replies lost after the script has run, between a gateway and redis",
        "I1-I9 I11",
        through=losing(0.05),
        plan={"retries": 2},
        figures=(Figure("replies lost", "replies", measured("replies lost"), at_least=1), QUIET),
        load=0.5,
        short_s=8.0,
    ),
    Row(
        "redis-wiped",
        "redis killed with orders in flight, its data gone",
        "I1-I9 I11",
        faults.wipe_redis,
        figures=(sells_within(10), QUIET),
        short_s=8.0,
        after_s=12.0,
    ),
    Row(
        "redis-older",
        "redis killed, back as a copy of itself that is some seconds old",
        "I1-I9 I11",
        faults.older_redis,
        figures=(sells_within(10), QUIET),
        after_s=12.0,
    ),
    Row(
        "redis-went-back",
        "a replica that stopped following for 5 s is put in force on the primary, whose process lives on",
        "I1-I9 I11",
        faults.stale_replica,
        figures=(
            Figure("failed, with units to sell", "orders", orders("failed"), at_most=0),
            sells_within(10),
            QUIET,
        ),
        after_s=12.0,
    ),
    Row(
        "redis-full",
        "redis out of memory, then read-only",
        "I1-I9 I11",
        faults.fill_redis,
        figures=(Figure("refused (503)", "answers", answered("503"), at_least=1), sells_within(5), QUIET),
    ),
    Row(
        "redis-disk-full",
        "no room for redis's append-only file: it ends, and is started where there is room",
        "I1-I9 I11",
        faults.fill_disk_under_redis,
        figures=(sells_within(10), QUIET),
        after_s=12.0,
    ),
    Row(
        "postgres-stopped",
        "postgres stopped, away for 30 s",
        "I1-I9 I11",
        faults.away("postgres", 30.0, signal.SIGINT),
        figures=(sells_within(5), QUIET),
        after_s=10.0,
    ),
    Row(
        "postgres-cut",
        "every connection to postgres terminated, every 5 s",
        "I1-I9 I11",
        faults.cut_postgres,
        figures=(Figure("accepted meanwhile and after", "%", accepted_share, at_least=95, timed=True), QUIET),
    ),
    Row(
        "postgres-read-only",
        "postgres can only be read for 10 s, then every connection is another server's",
        "I1-I9 I11",
        faults.read_only_postgres,
        figures=(
            Figure("orders failed for it", "orders", orders("failed"), at_most=0),
            sells_within(5),
            QUIET,
        ),
        short_s=10.0,
    ),
    Row(
        "provider-dead",
        "the payment provider away for 45 s",
        "I1-I9 I11",
        faults.away("payment-gateway", 45.0),
        figures=(
            Figure("orders failed for it", "orders", orders("failed"), at_most=0),
            Figure("declined, of 5 % in its weather", "%", declined_share, at_most=8),
            Figure("accepted meanwhile and after", "%", accepted_share, at_least=95, timed=True),
            QUIET,
        ),
        seconds=45.0,
        not_reached="asked for 3 minutes: away for 45 s, so that a row fits into a minute",
    ),
    Row(
        "payment-weather",
        "the provider hangs for 30%, and 20% each 503, 429, declines, resets after capture",
        "I1-I9 I11",
        faults.weather(
            "30% hang, 20% each 503, 429, declines, resets",
            {"hang": 0.3, "unavailable": 0.2, "rate_limited": 0.2, "declined": 0.2, "reset_after_capture": 0.2},
        ),
        weather=CALM,
        figures=(Figure("accepted", "%", accepted_share, at_least=95, timed=True), QUIET),
        load=0.5,
    ),
    Row(
        "poison",
        "records that can never be processed on both topics",
        "I1-I9 I11",
        intruders.poison,
        weather=CALM,
        figures=(
            Figure("dead letters beside the poison", "letters", measured("dead letters beside the poison"), at_most=0),
            Figure("furthest behind", "s", most_behind, at_most=5, timed=True),
            QUIET,
        ),
    ),
    Row(
        "overload",
        "three times as many wishes as the machine can take",
        "I1-I9 I11",
        figures=(
            Figure("accepted, of what it can take", "%", goodput(OVERLOAD), at_least=90, timed=True),
            Figure("refusals, p99", "ms", refusal_ms(0.99), at_most=50, timed=True),
            QUIET,
        ),
        load=2 * OVERLOAD,  # L is half of what the machine can take
        weather=CALM,
    ),
    Row(
        "stock-streams",
        "300 stock streams, 1 in 20 never reads",
        "I1-I11",
        intruders.stock_streams,
        figures=(
            Figure("events out of order", "events", measured("events out of order"), at_most=0),
            Figure("stalled and not cut", "streams", measured("stalled and not cut"), at_most=0),
            Figure("streams that ended", "streams", measured("streams that ended"), at_most=0),
            QUIET,
        ),
        weather=CALM,
        not_reached="asked for 5,000 streams: 300, because watchers and servers share two cores",
    ),
    Row(
        "login-flood",
        "200 wrong passwords a second",
        "I1-I9 I11",
        intruders.wrong_passwords,
        figures=(
            Figure("logins let in", "logins", measured("logins let in"), at_most=0),
            Figure("logins refused unseen", "logins", measured("logins refused with 429 or 503"), at_least=1),
            QUIET,
        ),
    ),
    Row(
        "broker-wiped",
        "the broker killed with orders in flight, its data gone",
        "I1-I9 I11",
        faults.wipe_kafka,
        figures=(sells_within(30), QUIET),
        after_s=20.0,
        wrecks=True,
    ),
    Row(
        "clock",
        "the clock of our processes, redis and postgres set by an hour ahead and back, twice back, then slewed",
        "I1-I9 I11",
        faults.set_the_clock,
        figures=(Figure("accepted", "%", accepted_share, at_least=95, timed=True), QUIET),
        weather=CALM,
        own_clock=True,
    ),
    Row(
        "random",
        "the seed picks a process, and to kill or to stop it",
        "I1-I9 I11",
        faults.random_faults(),
        figures=(QUIET,),
        seconds=40.0,
        after_s=10.0,
    ),
    Row(
        "one-broker-of-three",
        "one of three brokers killed, away for 30 s",
        "I1-I9 I11",
        faults.away("kafka", 30.0),
        figures=(sells_within(10), QUIET),
        brokers=3,
        after_s=10.0,
    ),
)
BY_NAME = {row.name: row for row in ROWS}
SHORT = tuple(row for row in ROWS if row.short_s)
