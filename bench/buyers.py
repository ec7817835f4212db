"""An external load client: runs a plan with generator processes over HTTP. It knows only the public interface.

python -m bench.buyers open --rate 400 --seconds 30 --product 1 --tokens tokens.json --log clients.jsonl
python -m bench.buyers sell-out --product 2 --tokens tokens.json --double-clicks 0.5
"""

import asyncio
import contextlib
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import typer

from infra.commands import SingleCommand
from infra.scheduling import lower_priority

from .generator import generate, load_users
from .plan import Plan, Share
from .tally import Result, Tally, show, summarise

Watch = Callable[[Sequence[Tally]], object]

SHOW_INTERVAL_S = 0.25
START_AFTER_S = 0.1  # from the start signal until the generator processes begin
LOAD_TIMEOUT_S = 60.0
REST_S = 120.0  # beyond the plan's own times, for the last answers and followed orders
GENERATE = "generate"  # first argument of a generator process; the second is the file for its tally
READY = b"ready\n"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class GeneratorFailed(Exception):
    """A generator process ended without a tally."""


async def run(plan: Plan, stop: asyncio.Event | None = None) -> Result:
    """Run the plan with `plan.processes` processes; `stop` ends the arrivals early. Raises GeneratorFailed.

    It always waits for outstanding answers. When cancelled, it ends the processes at once.
    """
    return summarise(plan.mode, await tallies(plan, stop))


async def tallies(plan: Plan, stop: asyncio.Event | None = None, watch: Watch | None = None) -> list[Tally]:
    """As `run`, but one tally a process. `watch` gets them meanwhile, as far as they are, if the plan is `live`."""
    run_name = secrets.token_hex(5)
    shares = [Share(plan=plan, index=index, run=run_name) for index in range(plan.processes)]
    with tempfile.TemporaryDirectory(prefix="tallies-", ignore_cleanup_errors=True) as folder:
        return await _generate(plan, shares, Path(folder), stop, watch)


async def _generate(
    plan: Plan, shares: list[Share], folder: Path, stop: asyncio.Event | None, watch: Watch | None
) -> list[Tally]:
    files = [folder / f"{share.index}.json" for share in shares]
    processes = [await _start(file, plan.niceness) for file in files]
    beside: list[asyncio.Task[None]] = []
    try:
        async with asyncio.timeout(LOAD_TIMEOUT_S):
            await asyncio.gather(*(_load(process, share) for process, share in zip(processes, shares, strict=True)))
        starts_at_s = time.time() + START_AFTER_S
        async with asyncio.timeout(plan.seconds + plan.follow_s + REST_S):
            beside = [asyncio.create_task(_stop_with(stop, processes)), asyncio.create_task(_show(files, watch))]
            return await asyncio.gather(
                *(_generate_apart(process, starts_at_s, file) for process, file in zip(processes, files, strict=True))
            )
    finally:
        for task in beside:
            task.cancel()
        for process in processes:
            if process.returncode is None:
                process.kill()


async def _show(files: list[Path], watch: Watch | None) -> None:
    """Until cancelled."""
    while watch is not None:
        await asyncio.sleep(SHOW_INTERVAL_S)
        watch([_tally(file) for file in files if file.exists()])


async def _stop_with(stop: asyncio.Event | None, processes: list[asyncio.subprocess.Process]) -> None:
    if stop is not None:
        await stop.wait()
        for process in processes:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                process.terminate()


async def _start(file: Path, niceness: int) -> asyncio.subprocess.Process:
    """Start one, of lower priority in a session of its own.

    It writes its tally to a file: through a pipe, a megabyte was truncated once in some hundred runs.
    """
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.buyers",
        GENERATE,
        str(file),
        start_new_session=niceness > 0,
        cwd=Path(__file__).parent.parent,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )


async def _load(process: asyncio.subprocess.Process, share: Share) -> None:
    """Send a process its share. Returns when it has read its users and waits for the start signal."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(msgspec.json.encode(share) + b"\n")
    if await process.stdout.readline() != READY:
        raise GeneratorFailed("a generator process did not come up; its output is above")


async def _generate_apart(process: asyncio.subprocess.Process, starts_at_s: float, file: Path) -> Tally:
    await process.communicate(msgspec.json.encode(starts_at_s) + b"\n")
    if process.returncode != 0:
        raise GeneratorFailed(f"a generator process ended with {process.returncode}; its output is above")
    return _tally(file)


def _tally(file: Path) -> Tally:
    return msgspec.json.decode(file.read_bytes(), type=Tally)


def _write(file: Path, tally: Tally) -> None:
    """Who reads the file sees a whole tally."""
    new = file.with_suffix(".new")
    new.write_bytes(msgspec.json.encode(tally))
    new.rename(file)


def _run_generator(file: Path) -> None:
    """Read a share from standard input, write `READY`, read the starting time, run, and write the tally to the file."""
    share = msgspec.json.decode(sys.stdin.buffer.readline(), type=Share)
    if share.plan.niceness:
        lower_priority(share.plan.niceness)
    users = load_users(Path(share.plan.tokens), share)
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    starts_at_s = msgspec.json.decode(sys.stdin.buffer.readline(), type=float)
    write = partial(_write, file)
    write(generate(share, users, starts_at_s, write if share.plan.live else None))


OWN_PORT = f"http://127.0.0.1:{os.environ.get('PORT', '8080')}"


class ModeName(StrEnum):
    """How buyers arrive; a test keeps them equal to `Mode`."""

    OPEN = "open"
    CLOSED = "closed"
    SELL_OUT = "sell-out"


class _Defaults(NamedTuple):
    connections: int
    seconds: float
    double_clicks: float


DEFAULTS = {
    ModeName.OPEN: _Defaults(2_000, 30.0, 0.0),
    ModeName.CLOSED: _Defaults(64, 30.0, 0.0),
    ModeName.SELL_OUT: _Defaults(64, 60.0, 0.5),
}
HOW = (
    "open: arrivals at a fixed rate, independent of the answers, as in a real sale. closed: so many connections, each with one"
    " request after the other, for the maximum throughput. sell-out: closed, until nothing is left."
)


Url = Annotated[str, typer.Option("--url", help="URL of the gateway; port: PORT, else 8080.")]
Tokens = Annotated[Path, typer.Option("--tokens", exists=True, help="JSON array of tokens (`thrones tokens`).")]
Rate = Annotated[float | None, typer.Option("--rate", min=0.1, help="open: arrivals a second.")]
Seconds = Annotated[float | None, typer.Option("--seconds", min=0.1, help="Duration (sell-out: the maximum).")]
Quiet = Annotated[float, typer.Option("--quiet", help="sell-out: end after so long without an acceptance.")]
Products = Annotated[list[int] | None, typer.Option("--product", help="With several, a random one each.")]
Quantity = Annotated[str, typer.Option("--quantity", help="Units per purchase: 1, or a range like 1-5.")]
Doubles = Annotated[
    float | None, typer.Option("--double-clicks", min=0, max=1, help="Share sent twice at once, with one key.")
]
Keyless = Annotated[float, typer.Option("--keyless", min=0, max=1, help="Share without an Idempotency-Key.")]
Drop = Annotated[float | None, typer.Option("--drop-after-ms", help="Disconnect then, and retry with the same key.")]
Retries = Annotated[int, typer.Option("--retries", min=0, help="After an unknown outcome, 429 or 503.")]
Follow = Annotated[float, typer.Option("--follow", min=0, max=1, help="Share of orders followed to their end.")]
Log = Annotated[Path | None, typer.Option("--log", help="The client log: JSON lines, appended.")]
Processes = Annotated[int, typer.Option("--processes", min=1, help="Generator processes.")]
AtOnce = Annotated[int | None, typer.Option("--connections", min=1, help="Maximum at once, over all processes.")]
Poisson = Annotated[bool, typer.Option("--poisson", help="open: random instead of even intervals.")]
Seed = Annotated[int | None, typer.Option("--seed")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


@app.command(cls=SingleCommand)
def buy(
    mode: Annotated[ModeName, typer.Argument(help=HOW)],
    tokens: Tokens,
    rate: Rate = None,
    seconds: Seconds = None,
    quiet: Quiet = 3.0,
    url: Url = OWN_PORT,
    product: Products = None,
    quantity: Quantity = "1",
    double_clicks: Doubles = None,
    keyless: Keyless = 0.0,
    drop_after_ms: Drop = None,
    retries: Retries = 0,
    follow: Follow = 0.0,
    log: Log = None,
    processes: Processes = 1,
    connections: AtOnce = None,
    poisson: Poisson = False,
    seed: Seed = None,
    as_json: AsJson = False,
) -> None:
    """Buy, and report what was answered and how fast. Exit 1 if an answer was wrong.

    Example: python -m bench.buyers open --rate 400 --seconds 30 --product 1 --tokens tokens.json
    """
    plan = msgspec.structs.replace(
        _plan(mode, rate, seconds, double_clicks, connections),
        base_url=url,
        tokens=str(tokens.resolve()),
        products=tuple(product or (1,)),
        quantities=_range(quantity),
        log=None if log is None else str(log.resolve()),
    )
    options = {"keyless": keyless, "drop_after_ms": drop_after_ms, "retries": retries, "follow": follow}
    more = {"quiet_s": quiet, "poisson": poisson, "processes": processes, "seed": seed}
    _report(msgspec.structs.replace(plan, **options, **more), as_json)


def _plan(
    mode: ModeName, rate: float | None, seconds: float | None, double_clicks: float | None, connections: int | None
) -> Plan:
    """What the mode decides; the rest of the plan is to be filled in."""
    if mode is ModeName.OPEN and rate is None:
        raise typer.BadParameter("open needs a rate", param_hint="'--rate'")
    usual = DEFAULTS[mode]
    return Plan(
        mode=mode.value,
        base_url="",
        tokens="",
        rate=rate or 0.0,
        seconds=seconds or usual.seconds,
        connections=connections or usual.connections,
        double_clicks=usual.double_clicks if double_clicks is None else double_clicks,
    )


def _range(quantity: str) -> tuple[int, int]:
    low, _, high = quantity.partition("-")
    return int(low), int(high or low)


def _report(plan: Plan, as_json: bool) -> None:
    result = asyncio.run(run(plan))
    typer.echo(msgspec.json.encode(result).decode() if as_json else show(result))
    raise typer.Exit(1 if result.two_orders or result.bad_answers else 0)


def main() -> None:
    if sys.argv[1:2] == [GENERATE]:
        _run_generator(Path(sys.argv[2]))
        return
    app()


if __name__ == "__main__":
    main()
