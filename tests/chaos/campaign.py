"""Rows in, results out: load and client log -> faults -> heal -> end of load -> quiet -> the books, one row after the other."""

import asyncio
import contextlib
import os
import random
import subprocess
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from bench.tally import Result, show
from consumers.audit.audit import Auditor
from consumers.audit.client_log import read_client_log
from infra.lifecycle import background
from infra.postgres.pool import connect_postgres
from infra.redis.client import connect_redis
from schemas.ids import ProductId

from .calibrate import sell
from .clock import StackClock
from .figures import GROWN_MAX_PERCENT, growth
from .ground import Ground, Vitals
from .results import FaultLine, Measured, RowResult
from .rows import STEADY, Faults, Row
from .trial import Answer, Outcome, Trial
from .watch import Watch

QUIET_MAX_S = 180.0  # three times what is asked for, so that slow is not taken for lost
BEGINS_MAX_S = 60.0
LOAD_REST_S = 240.0  # over the faults' time: until it is told to stop
HISTORY_MAX = 60_000  # orders on one log: the audit reads it from its beginning, so then the stack is made anew
POLL_INTERVAL_S = 0.2
FIRST_AHEAD_S = 7_200.0  # of a stack's own clock: set back by an hour, it is not yet before the tokens of its buyers


@dataclass
class Campaign:
    """Runs rows on one stack, made anew where a row needs it. `rate` is L, in wishes a second."""

    ground: Ground
    rate: float
    history: int = field(default=0)

    async def run(self, row: Row, seed: int, seconds: float | None = None) -> tuple[RowResult, Outcome]:
        await self._prepare(row)
        try:
            return await self._run(row, seed, seconds)
        finally:
            if self.ground.clock is not None:
                await asyncio.to_thread(self.ground.again, None)

    async def _run(self, row: Row, seed: int, seconds: float | None) -> tuple[RowResult, Outcome]:
        load_before = os.getloadavg()[0]
        product = await asyncio.to_thread(self.ground.new_product, row.stock, *row.options)
        seconds = seconds or row.seconds
        stop = asyncio.Event()
        trial = Trial(self.ground, random.Random(seed), product, seconds, self.rate * (row.load or 1.0), stop)
        print(f"{row.name}: seed {seed}, {row.fault}", flush=True)
        outcome, violations = await self._try(row, trial)
        self.history += outcome.result.orders
        result = _result(row, seed, outcome, violations, load_before)
        if row.wrecks or result.violations:
            self.history = HISTORY_MAX
        return result, outcome

    async def _prepare(self, row: Row) -> None:
        if row.brokers != self.ground.brokers or self.history >= HISTORY_MAX:
            self.ground.brokers = row.brokers
            await asyncio.to_thread(self.ground.fresh)
            self.history, _ = await sell(self.ground)  # as the first stack has, where L was measured on it
        if row.own_clock:
            await asyncio.to_thread(self.ground.again, StackClock(self.ground.state_dir / "clock", FIRST_AHEAD_S))
        await asyncio.to_thread(lambda: self.ground.tokens)  # made with the first row, and after each new beginning
        await asyncio.to_thread(self.ground.set_weather, {"seed": None, **row.weather})

    async def _try(self, row: Row, trial: Trial) -> tuple[Outcome, list[str]]:
        before = self.ground.vitals()
        watch = Watch(self.ground.settings(), trial.product, trial.looks)
        async with background(watch.run()):
            result = await self._load_with_faults(row, trial)
            ended_s = time.time()
            print(show(result), flush=True)
            quiet_s, report = await self._books(trial.product, ended_s)
        trial.measured.update(await self._grown(before, row.rest_s))
        answers = _answers(self.ground.client_log(trial.product))
        violations = [*report["problems"], *watch.violations, *trial.violations]
        violations += [f"one key, two orders: {text}" for text in result.two_orders]
        violations += [f"bad answer: {text}" for text in result.bad_answers]
        if not watch.seen:
            violations.append("Redis was never looked at")
        (product,) = report["products"]
        return Outcome(trial, result, product, answers, quiet_s), violations

    async def _load_with_faults(self, row: Row, trial: Trial) -> Result:
        """Load from before the first fault until a little after the last one is healed."""
        async with row.through(trial) if row.through else contextlib.nullcontext(self.ground.url) as url:
            return await self._load(row, trial, url)

    async def _load(self, row: Row, trial: Trial, url: str) -> Result:
        rate = {"rate": trial.rate} if row.load else {}
        ends = {"seconds": trial.seconds + LOAD_REST_S, "seed": trial.dice.randrange(2**31), "base_url": url}
        plan = {**STEADY, **ends, **rate, **row.plan}
        load = asyncio.create_task(self.ground.buy(trial.product, trial.stop, **plan))
        try:
            await self._under_way(trial.product, load)
            trial.started_s = time.time()
            if row.faults is None:
                await asyncio.wait([load], timeout=trial.seconds)
            else:
                await _inflict(row.faults, trial)
                await asyncio.wait([load], timeout=min(row.after_s, trial.seconds))
            trial.stop.set()
            return await load
        finally:
            load.cancel()

    async def _under_way(self, product: int, load: "asyncio.Task[Result]") -> None:
        log, until = self.ground.client_log(product), time.monotonic() + BEGINS_MAX_S
        while not load.done() and not (log.exists() and log.stat().st_size):
            assert time.monotonic() < until, "the load does not begin"
            await asyncio.sleep(POLL_INTERVAL_S)

    async def _grown(self, before: dict[int, Vitals], rest_s: float) -> dict[str, float]:
        """Connections that are kept for the next call are closed within `rest_s`; what is left then has grown."""
        until = time.monotonic() + rest_s
        while (found := growth(before, self.ground.vitals()))["files grown"] > GROWN_MAX_PERCENT:
            if time.monotonic() >= until:
                break
            await asyncio.sleep(1.0)
        return found

    async def _books(self, product: int, since_s: float) -> tuple[float, dict[str, Any]]:
        """Seconds until quiet, and the same report as `thrones audit --json`."""
        settings = self.ground.settings()
        seen = read_client_log(self.ground.client_log(product), product)
        redis, pool = connect_redis(settings, connections=2, timeout_s=10.0), await connect_postgres(settings)
        auditor = Auditor(settings, redis, pool)
        try:
            await auditor.wait_for_quiet([ProductId(product)], time.monotonic() + QUIET_MAX_S)
            quiet_s = time.time() - since_s
            report = await auditor.audit([ProductId(product)], 1.0, seen)
        finally:
            await auditor.close()
            await pool.close()
            await redis.aclose()
        return quiet_s, msgspec.to_builtins(report)


async def _inflict(faults: Faults, trial: Trial) -> None:
    """What a fault waits for in vain is a violation; the books are asked all the same."""
    try:
        await faults(trial)
    except (AssertionError, TimeoutError) as error:
        trial.violations.append(f"while faults happened: {error!r}")


def _answers(log: Path) -> list[Answer]:
    decode = msgspec.json.Decoder(Answer).decode
    return sorted(map(decode, log.read_bytes().splitlines()), key=lambda answer: answer.at_ms)


def _result(row: Row, seed: int, outcome: Outcome, violations: list[str], load_before: float) -> RowResult:
    trial, load = outcome.trial, outcome.result
    figures = []
    for figure in row.figures:
        value = figure.of(outcome)
        met = figure.met(value)
        figures.append(Measured(figure.what, value, figure.unit, figure.bound, met))
        if met is False and not figure.timed:
            violations.append(f"{figure.what}: {value:g} {figure.unit}, {figure.bound}")
    return RowResult(
        row=row.name,
        seed=seed,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=_commit(),
        cores=os.cpu_count() or 1,
        load_average=(round(load_before, 1), round(os.getloadavg()[0], 1)),
        seconds=load.seconds,
        offered_per_s=load.offered_per_s,
        accepted_per_s=load.accepted_per_s,
        orders=load.orders,
        outcomes=load.outcomes,
        answers=load.answers,
        faults=[
            FaultLine(round(f.from_s - trial.started_s, 1), round(f.until_s - f.from_s, 1), f.what)
            for f in trial.faults
        ],
        figures=figures,
        quiet_s=round(outcome.quiet_s, 1),
        violations=violations,
    )


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
