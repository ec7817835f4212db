"""What is done to a running stack, one coroutine a row: a trial in, its faults on a timetable drawn from its seed."""

import asyncio
import json
import os
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

import asyncpg

from infra.redis.client import connect_redis
from infra.supervision.registry import ProcessRow as ProcessRow
from sale.books.inventory import Inventory
from sale.books.rebuild.lock import books_lock
from schemas.ids import ProductId
from tests.replica import a_replica

from .ground import APPLICATIONS, SERVERS
from .rows import CALM, STEADY, Faults
from .trial import Trial

EXIT_MAX_S = 25.0
CLOCK_SEEN_MAX_S = 30.0
CLOCK_SEEN_WITHIN_S = 60.0
SELLS_AGAIN_MAX_S = 45.0  # with every core busy
STAGES = ("order-stage", "payment-stage")
ENDED = "SELECT count(*) FROM orders WHERE product_id = $1 AND status IN ('confirmed', 'payment_failed', 'failed')"
TERMINATE_OTHERS = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()"""


def kill_every(seconds: float, roles: Sequence[str]) -> Faults:
    """kill -9 a process drawn from the roles, about every so many seconds, each replaced before the next."""

    async def faults(trial: Trial) -> None:
        async def kill() -> None:
            row = await trial.ground.pick(trial.dice.choice(roles), trial.dice)
            await _kill(trial, row)

        await trial.every(seconds, kill)

    return faults


async def _kill(trial: Trial, row: ProcessRow) -> None:
    """The fault is over at once: from then on everything should get well by itself."""
    trial.begin(f"kill -9 {row['role']}-{row['member']}")
    os.kill(row["pid"], signal.SIGKILL)
    _keep_worst(trial, "replaced", await trial.ground.replaced(row))


async def kill_each_process(trial: Trial) -> None:
    """Every gateway worker, both stages, relay, projector and reconciler, in an order of the dice, once each."""
    rows = await trial.ground.all_of(*APPLICATIONS)
    trial.dice.shuffle(rows)
    for row in rows:
        await _kill(trial, row)
        await asyncio.sleep(min(2.0, trial.seconds / 20))


async def kill_each_server(trial: Trial) -> None:
    """Redis, Kafka, Postgres and the provider, once each, the next when the sale goes on again by itself."""
    roles = list(SERVERS)
    trial.dice.shuffle(roles)
    for role in roles:
        await _kill(trial, await trial.ground.pick(role, trial.dice))
        await _sells_again(trial)


async def kill_supervisor(trial: Trial) -> None:
    """Its children stop by themselves; then `thrones up`, and nobody has to help."""
    await asyncio.sleep(min(3.0, trial.seconds / 4))
    [supervisor] = await trial.ground.all_of("supervisor")
    children = await trial.ground.all_of(*APPLICATIONS, *SERVERS)
    fault = trial.begin("kill -9 supervisor, then `thrones up`")
    os.kill(supervisor["pid"], signal.SIGKILL)
    for row in children:
        await trial.ground.ended(row["pid"])
    await asyncio.to_thread(trial.ground.up)
    trial.heal(fault)
    await _sells_again(trial)


async def _sells_again(trial: Trial) -> None:
    """Wait until orders have been accepted again for a second without a break."""
    began_s = time.time()
    while True:
        now_s = time.time()
        outcomes = _outcomes(trial.ground.client_log(trial.product), now_s - 1.5, now_s - 0.5)
        if now_s - began_s > 2.0 and outcomes["A"] > 0.9 * max(trial.rate, outcomes.total()):
            return
        assert now_s - began_s < SELLS_AGAIN_MAX_S, f"no sale any more: {outcomes}"
        await asyncio.sleep(0.2)


def _outcomes(log: Path, from_s: float, to_s: float) -> Counter[str]:
    """What clients were answered between two times (epoch seconds)."""
    found: Counter[str] = Counter()
    for line in reversed(log.read_bytes().splitlines()):
        answer = json.loads(line)
        if answer["at_ms"] < (from_s - 1.0) * 1000:  # lines are in the order of their times, but for a flush's delay
            break
        found[answer["outcome"]] += from_s <= answer["at_ms"] / 1000 < to_s
    return found


async def kill_and_pause_stages(trial: Trial) -> None:
    """A member killed, or stopped for 10 s (less in a short run), in turn."""
    kinds = [(role, how) for role in STAGES for how in ("kill", "pause")]
    trial.dice.shuffle(kinds)
    await asyncio.sleep(min(5.0, trial.seconds / 6))  # how far behind they usually are
    pause_s = min(10.0, trial.seconds / 6)
    for role, how in kinds:
        row = await trial.ground.pick(role, trial.dice)
        if how == "kill":
            await _kill(trial, row)
        else:
            fault = trial.begin(f"SIGSTOP {role} for {pause_s:.0f} s")
            async with trial.ground.paused(row):
                await asyncio.sleep(pause_s)
            trial.heal(fault)
        await trial.until_it_keeps_up(at_most_s=min(30.0, trial.seconds))


def away(role: str, seconds: float, how: signal.Signals = signal.SIGKILL) -> Faults:
    """One server ended and kept away for `seconds` (at most as long as the trial's faults take), then started again."""

    async def faults(trial: Trial) -> None:
        lasts_s = min(seconds, trial.seconds)
        fault = trial.begin(f"{how.name} {role}, away for {lasts_s:.0f} s")
        async with trial.ground.away(await trial.ground.pick(role, trial.dice), how):
            await asyncio.sleep(lasts_s)
        trial.heal(fault)

    return faults


def after_orders(ended: int, then: Faults) -> Faults:
    """`then`, once so many orders of the sale have ended. Waits as long as the trial's faults may take."""

    async def faults(trial: Trial) -> None:
        connection = await asyncpg.connect(trial.ground.settings().postgres_dsn, timeout=5)
        try:
            async with asyncio.timeout(trial.seconds):
                while await connection.fetchval(ENDED, trial.product) < ended:  # noqa: ASYNC110 - Postgres tells nobody
                    await asyncio.sleep(2.0)
        finally:
            await connection.close()
        await then(trial)

    return faults


def weather(what: str, bad: Mapping[str, float]) -> Faults:
    """The payment provider's weather, while faults take; calm afterwards."""

    async def faults(trial: Trial) -> None:
        fault = trial.begin(what)
        await asyncio.to_thread(trial.ground.set_weather, {**CALM, **bad})
        await asyncio.sleep(trial.seconds)
        await asyncio.to_thread(trial.ground.set_weather, {**CALM, **dict.fromkeys(bad, 0)})
        trial.heal(fault)

    return faults


def paused(role: str, seconds: float) -> Faults:
    """One server stopped (it hangs, its connections stay open), then let go."""

    async def faults(trial: Trial) -> None:
        lasts_s = min(seconds, trial.seconds)
        fault = trial.begin(f"SIGSTOP {role} for {lasts_s:.0f} s")
        async with trial.ground.paused(await trial.ground.pick(role, trial.dice)):
            await asyncio.sleep(lasts_s)
        trial.heal(fault)

    return faults


async def everything_at_once(trial: Trial) -> None:
    """kill -9 of every process, supervisor and servers included; then `thrones up`."""
    await asyncio.sleep(trial.seconds * trial.dice.uniform(0.2, 0.5))
    fault = trial.begin("kill -9 of everything at once, then `thrones up`")
    await trial.ground.kill_everything()
    began = time.monotonic()
    await asyncio.to_thread(trial.ground.up)
    trial.measured["up again"] = time.monotonic() - began
    trial.heal(fault)
    await asyncio.sleep(max(0.0, trial.left_s))


async def rolling_restart(trial: Trial) -> None:
    """SIGTERM to one process after the other, each replaced before the next; every one must exit 0 by itself."""
    rows = await trial.ground.all_of(*APPLICATIONS)
    trial.dice.shuffle(rows)
    for row in rows:
        name = f"{row['role']}-{row['member']}"
        fault = trial.begin(f"SIGTERM {name}")
        os.kill(row["pid"], signal.SIGTERM)
        _keep_worst(trial, "exit", await trial.ground.ended(row["pid"]))
        await trial.ground.replaced(row)
        code = _exit_code(trial, name)
        if code != 0:
            trial.violations.append(f"{name} exited with {code} after SIGTERM")
        trial.heal(fault)
        await asyncio.sleep(min(2.0, trial.seconds / 20))


def _exit_code(trial: Trial, process: str) -> int | str | None:
    """Of the process' last death, as its supervisor saw it."""
    log = trial.ground.state_dir / "logs" / "supervisor-1.log"
    for line in reversed(log.read_text().splitlines()):
        if '"process died"' in line and (death := json.loads(line))["process"] == process:
            code: int | str = death["code"]
            return code
    return None


async def change_members(trial: Trial) -> None:
    """Members of both stages added and removed, about every 10 s."""
    sizes = dict.fromkeys(STAGES, 1)

    async def change() -> None:
        role = trial.dice.choice(STAGES)
        sizes[role] = trial.dice.choice([n for n in (1, 2, 3) if n != sizes[role]])
        fault = trial.begin(f"thrones scale {role} {sizes[role]}")
        done = await asyncio.to_thread(trial.ground.thrones, "scale", role, str(sizes[role]))
        assert done.returncode == 0, done.stdout
        trial.heal(fault)

    await trial.every(min(10.0, trial.seconds / 3), change)
    for role in STAGES:
        await asyncio.to_thread(trial.ground.thrones, "scale", role, "1")


async def wipe_redis(trial: Trial) -> None:
    """Killed with orders in flight, its data gone when it starts again."""
    await _touch_data(trial, "redis", "killed and wiped", trial.ground.wipe_redis)


async def wipe_kafka(trial: Trial) -> None:
    await _touch_data(trial, "kafka", "killed and wiped", trial.ground.wipe_kafka)


async def _touch_data(trial: Trial, role: str, what: str, touch: Callable[[], object]) -> None:
    await asyncio.sleep(trial.seconds * trial.dice.uniform(0.3, 0.5))
    fault = trial.begin(f"{role} {what}")
    async with trial.ground.away(await trial.ground.pick(role, trial.dice)):
        touch()
    trial.heal(fault)
    await asyncio.sleep(max(0.0, trial.left_s))


async def older_redis(trial: Trial) -> None:
    """Killed, and started with a copy of its append-only file that is some seconds old."""
    copy = trial.ground.state_dir / "redis-copy"
    shutil.rmtree(copy, ignore_errors=True)
    await asyncio.sleep(trial.seconds * trial.dice.uniform(0.1, 0.3))
    shutil.copytree(trial.ground.append_only, copy)

    def go_back() -> None:
        trial.ground.wipe_redis()
        shutil.copytree(copy, trial.ground.append_only)

    await _touch_data(trial, "redis", "killed, back as an older copy of itself", go_back)


async def stale_replica(trial: Trial) -> None:
    """A replica stops following for some seconds of the sale and is then put in force: redis's process lives on."""
    with tempfile.TemporaryDirectory(prefix="thrones-replica-") as home:
        async with a_replica(trial.ground.settings(), Path(home)) as replica:
            fault = trial.begin("redis gets its first replica")
            await replica.follow()
            trial.heal(fault)
            await asyncio.sleep(trial.seconds * trial.dice.uniform(0.2, 0.3))
            await replica.stop_following()
            stale_s = min(5.0, trial.seconds / 4)
            await asyncio.sleep(stale_s)
            fault = trial.begin(f"redis takes the data of a replica that stopped following {stale_s:.0f} s ago")
            await replica.put_in_force()
            trial.heal(fault)
            await asyncio.sleep(max(0.0, trial.left_s))


async def closed_beside(trial: Trial) -> None:
    """Another product's books are closed, and kept from being made anew, while its orders are under way; then let go."""
    ground, settings = trial.ground, trial.ground.settings()
    other = await asyncio.to_thread(ground.new_product, 10_000)
    await asyncio.sleep(min(10.0, trial.seconds / 4))  # the sale alone
    plan = {**STEADY, "rate": trial.rate / 4, "seconds": trial.left_s + 5}
    buying = asyncio.create_task(ground.buy(other, trial.stop, **plan))
    await asyncio.sleep(min(3.0, trial.seconds / 8))
    redis = connect_redis(settings, connections=1, timeout_s=5.0)
    try:
        async with books_lock(settings, ProductId(other), wait=True):
            fault = trial.begin(f"the books of product {other} closed for {trial.left_s:.0f} s")
            await Inventory(redis).close(ProductId(other))
            await asyncio.sleep(max(0.0, trial.left_s))
        trial.heal(fault)
    finally:
        await redis.aclose()
    await buying
    trial.stop.set()  # books are asked at rest: the sale beside it has to end first
    report = await asyncio.to_thread(ground.audit, other)
    trial.violations += [f"the product that was closed: {problem}" for problem in report["problems"]]


async def fill_redis(trial: Trial) -> None:
    """No memory left for writes, then room again; then as a replica, which may not be written to."""
    redis = connect_redis(trial.ground.settings(), connections=1, timeout_s=5.0)
    lasts_s = trial.seconds / 5
    try:
        await asyncio.sleep(lasts_s)
        fault = trial.begin(f"redis out of memory for {lasts_s:.0f} s")
        await redis.config_set("maxmemory", 1)
        await asyncio.sleep(lasts_s)
        await redis.config_set("maxmemory", "1gb")
        trial.heal(fault)
        await asyncio.sleep(lasts_s)
        fault = trial.begin(f"redis read-only for {lasts_s:.0f} s")
        await redis.replicaof("127.0.0.1", 1)
        await asyncio.sleep(lasts_s)
        await redis.replicaof("NO", "ONE")
        trial.heal(fault)
        await asyncio.sleep(max(0.0, trial.left_s))
    finally:
        await redis.aclose()


async def fill_disk_under_redis(trial: Trial) -> None:
    """Its append-only file may not grow any more: it must not answer what it cannot keep, so it ends."""
    import resource

    import psutil

    await asyncio.sleep(trial.seconds * trial.dice.uniform(0.2, 0.4))
    row = await trial.ground.pick("redis", trial.dice)
    largest = max(file.stat().st_size for file in trial.ground.append_only.iterdir())
    fault = trial.begin("redis: no room for its append-only file; room again once it has ended")
    psutil.Process(row["pid"]).rlimit(resource.RLIMIT_FSIZE, (largest + 4096, resource.RLIM_INFINITY))
    await trial.ground.ended(row["pid"])
    await trial.ground.replaced(row)
    trial.heal(fault)
    await asyncio.sleep(max(0.0, trial.left_s))


async def cut_postgres(trial: Trial) -> None:
    """Every connection terminated, about every 5 s."""

    async def cut() -> None:
        connection = await asyncpg.connect(trial.ground.settings().postgres_dsn, timeout=5)
        fault = trial.begin("every connection to postgres terminated")
        await connection.execute(TERMINATE_OTHERS)
        await connection.close()
        trial.heal(fault)

    await trial.every(min(5.0, trial.seconds / 4), cut)


async def read_only_postgres(trial: Trial) -> None:
    """As when it fails over: it can only be read for 10 s (less in a short run), then every connection is another server's."""
    await asyncio.sleep(trial.seconds * trial.dice.uniform(0.1, 0.3))
    lasts_s = min(10.0, trial.seconds / 2)
    connection = await asyncpg.connect(trial.ground.settings().postgres_dsn, timeout=5)
    try:
        fault = trial.begin(f"postgres read-only for {lasts_s:.0f} s, then every connection terminated")
        await connection.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        await connection.execute("SELECT pg_reload_conf()")
        await asyncio.sleep(lasts_s)
        await connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
        await connection.execute("SELECT pg_reload_conf()")
        await connection.execute(TERMINATE_OTHERS)
        trial.heal(fault)
    finally:
        await connection.close()
    await asyncio.sleep(max(0.0, trial.left_s))


async def set_the_clock(trial: Trial) -> None:
    """An hour ahead, an hour back, another one back, then slewed by seconds: processes are what they were, and are found."""
    clock = trial.ground.clock
    assert clock is not None, "the row runs under the machine's own clock"
    before = {row["pid"] for row in await trial.ground.all_of(*APPLICATIONS, *SERVERS, "supervisor")}
    for step_s in (3_600.0, -3_600.0, -3_600.0):
        fault = trial.begin(f"the clock is set by {step_s:+.0f} s")
        clock.set(clock.ahead_s + step_s)
        await _told_by_a_gateway(trial, clock.ahead_s)
        await asyncio.sleep(trial.seconds / 4)
        trial.heal(fault)
    fault = trial.begin("the clock is slewed by 3 s")
    for _ in range(30):
        clock.set(clock.ahead_s + 0.1)
        await asyncio.sleep(trial.seconds / 4 / 30)
    trial.heal(fault)
    if missing := before - {row["pid"] for row in trial.ground.rows()}:
        trial.violations.append(f"{missing} are not seen any more: {trial.ground.seen()}")


async def _told_by_a_gateway(trial: Trial, ahead_s: float) -> None:
    """Wait until the step has come to the stack: without it the row would prove nothing."""
    until = time.monotonic() + CLOCK_SEEN_MAX_S
    while True:
        product = await asyncio.to_thread(trial.ground.get, f"/api/products/{trial.product}")
        told_s = datetime.fromisoformat(product["serverTime"]).timestamp() - time.time()
        if abs(told_s - ahead_s) < CLOCK_SEEN_WITHIN_S:
            return
        assert time.monotonic() < until, f"the gateway's clock is {told_s:.0f} s ahead, not {ahead_s:.0f}"
        await asyncio.sleep(0.2)


def random_faults(roles: Sequence[str] = (*APPLICATIONS, *SERVERS)) -> Faults:
    """Seed picks role, kill or pause, how long; one after the other."""

    async def faults(trial: Trial) -> None:
        async def one() -> None:
            row = await trial.ground.pick(trial.dice.choice(roles), trial.dice)
            name, lasts_s = f"{row['role']}-{row['member']}", trial.dice.uniform(0.5, 4.0)
            if row["role"] != "postgres" and trial.dice.random() < 0.4:
                fault = trial.begin(f"SIGSTOP {name} for {lasts_s:.1f} s")
                async with trial.ground.paused(row):
                    await asyncio.sleep(lasts_s)
                trial.heal(fault)
            else:
                await _kill(trial, row)

        await trial.every(3.0, one)

    return faults


def _keep_worst(trial: Trial, name: str, value: float) -> None:
    trial.measured[name] = max(trial.measured.get(name, 0.0), round(value, 2))
