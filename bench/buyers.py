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
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from infra.commands import Commands

from .generator import generate, load_users
from .plan import Mode, Plan, Share
from .tally import Result, Tally, show, summarise

START_AFTER_S = 0.1  # from the start signal until the generator processes begin
LOAD_TIMEOUT_S = 60.0
REST_S = 120.0  # beyond the plan's own times, for the last answers and followed orders
GENERATE = "generate"  # first argument of a generator process; the second is the file for its tally
READY = b"ready\n"

app = typer.Typer(
    cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__
)


class GeneratorFailed(Exception):
    """A generator process ended without a tally."""


async def run(plan: Plan, stop: asyncio.Event | None = None) -> Result:
    """Run the plan with `plan.processes` processes; `stop` ends the arrivals early. Raises GeneratorFailed.

    It always waits for outstanding answers. When cancelled, it ends the processes at once.
    """
    run_name = secrets.token_hex(5)
    shares = [Share(plan=plan, index=index, run=run_name) for index in range(plan.processes)]
    with tempfile.TemporaryDirectory(prefix="tallies-", ignore_cleanup_errors=True) as folder:
        return summarise(plan.mode, await _generate(plan, shares, Path(folder), stop))


async def _generate(plan: Plan, shares: list[Share], folder: Path, stop: asyncio.Event | None) -> list[Tally]:
    files = [folder / f"{share.index}.json" for share in shares]
    processes = [await _start(file) for file in files]
    stopping: asyncio.Task[None] | None = None
    try:
        async with asyncio.timeout(LOAD_TIMEOUT_S):
            await asyncio.gather(*(_load(process, share) for process, share in zip(processes, shares, strict=True)))
        starts_at_s = time.time() + START_AFTER_S
        async with asyncio.timeout(plan.seconds + plan.follow_s + REST_S):
            stopping = asyncio.create_task(_stop_with(stop, processes))
            return await asyncio.gather(
                *(_generate_apart(process, starts_at_s, file) for process, file in zip(processes, files, strict=True))
            )
    finally:
        if stopping is not None:
            stopping.cancel()
        for process in processes:
            if process.returncode is None:
                process.kill()


async def _stop_with(stop: asyncio.Event | None, processes: list[asyncio.subprocess.Process]) -> None:
    if stop is not None:
        await stop.wait()
        for process in processes:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                process.terminate()


async def _start(file: Path) -> asyncio.subprocess.Process:
    """Start one. It writes its tally to a file: through a pipe, a megabyte was truncated once in some hundred runs."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.buyers",
        GENERATE,
        str(file),
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


def _run_generator(file: Path) -> None:
    """Read a share from standard input, write `READY`, read the starting time, run, and write the tally to the file."""
    share = msgspec.json.decode(sys.stdin.buffer.readline(), type=Share)
    users = load_users(Path(share.plan.tokens), share)
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    starts_at_s = msgspec.json.decode(sys.stdin.buffer.readline(), type=float)
    file.write_bytes(msgspec.json.encode(generate(share, users, starts_at_s)))


Tokens = Annotated[Path, typer.Option("--tokens", exists=True, help="JSON array of bearer tokens (`thrones tokens`).")]
Url = Annotated[str, typer.Option("--url", help="URL of the gateway; port: PORT of the environment, else 8080.")]
Seconds = Annotated[float, typer.Option("--seconds", min=0.1, help="Duration (sell-out: the maximum).")]
Products = Annotated[
    list[int] | None, typer.Option("--product", help="Product id; with several, a random one per purchase.")
]
Quantity = Annotated[str, typer.Option("--quantity", help="Units per purchase: 1, or a range like 1-5.")]
Doubles = Annotated[
    float,
    typer.Option("--double-clicks", min=0, max=1, help="Share of purchases sent twice at once with the same key."),
]
Keyless = Annotated[float, typer.Option("--keyless", min=0, max=1, help="Share without an Idempotency-Key.")]
Drop = Annotated[
    float | None, typer.Option("--drop-after-ms", help="Disconnect after this time, and retry with the same key.")
]
Retries = Annotated[
    int, typer.Option("--retries", min=0, help="Retries of a purchase after an unknown outcome, 429 or 503.")
]
Follow = Annotated[float, typer.Option("--follow", min=0, max=1, help="Share of orders followed to their end.")]
Log = Annotated[Path | None, typer.Option("--log", help="The client log: JSON lines, appended.")]
Processes = Annotated[int, typer.Option("--processes", min=1, help="Generator processes.")]
Most = Annotated[int, typer.Option("--connections", min=1, help="Maximum at once, over all processes.")]
Seed = Annotated[int | None, typer.Option("--seed")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
OWN_PORT = f"http://127.0.0.1:{os.environ.get('PORT', '8080')}"


@app.command("open")
def open_load(
    tokens: Tokens,
    rate: Annotated[float, typer.Option("--rate", min=0.1, help="Arrivals a second, independent of the answers.")],
    seconds: Seconds = 30.0,
    url: Url = OWN_PORT,
    product: Products = None,
    quantity: Quantity = "1",
    double_clicks: Doubles = 0.0,
    keyless: Keyless = 0.0,
    drop_after_ms: Drop = None,
    retries: Retries = 0,
    follow: Follow = 0.0,
    log: Log = None,
    processes: Processes = 1,
    connections: Most = 2_000,
    poisson: Annotated[bool, typer.Option("--poisson", help="Random instead of even intervals.")] = False,
    seed: Seed = None,
    as_json: AsJson = False,
) -> None:
    """Arrivals at a fixed rate, independent of the answers, as in a real sale."""
    plan = _plan("open", url, tokens, seconds, product, quantity, log)
    _report(
        msgspec.structs.replace(
            plan,
            rate=rate,
            double_clicks=double_clicks,
            keyless=keyless,
            drop_after_ms=drop_after_ms,
            retries=retries,
            follow=follow,
            processes=processes,
            connections=connections,
            poisson=poisson,
            seed=seed,
        ),
        as_json,
    )


@app.command()
def closed(
    tokens: Tokens,
    connections: Most = 64,
    seconds: Seconds = 30.0,
    url: Url = OWN_PORT,
    product: Products = None,
    quantity: Quantity = "1",
    double_clicks: Doubles = 0.0,
    retries: Retries = 0,
    follow: Follow = 0.0,
    log: Log = None,
    processes: Processes = 1,
    seed: Seed = None,
    as_json: AsJson = False,
) -> None:
    """A fixed number of connections, each with one request after the other: measures the maximum throughput."""
    plan = _plan("closed", url, tokens, seconds, product, quantity, log)
    _report(
        msgspec.structs.replace(
            plan,
            connections=connections,
            double_clicks=double_clicks,
            retries=retries,
            follow=follow,
            processes=processes,
            seed=seed,
        ),
        as_json,
    )


@app.command("sell-out")
def sell_out(
    tokens: Tokens,
    connections: Most = 64,
    seconds: Seconds = 60.0,
    quiet: Annotated[float, typer.Option("--quiet", help="End after this many seconds without an acceptance.")] = 3.0,
    url: Url = OWN_PORT,
    product: Products = None,
    quantity: Quantity = "1",
    double_clicks: Doubles = 0.5,
    retries: Retries = 0,
    follow: Follow = 0.0,
    log: Log = None,
    processes: Processes = 1,
    seed: Seed = None,
    as_json: AsJson = False,
) -> None:
    """Buy until the product is sold out; retry for a while after the first "sold out"."""
    plan = _plan("sell-out", url, tokens, seconds, product, quantity, log)
    _report(
        msgspec.structs.replace(
            plan,
            connections=connections,
            quiet_s=quiet,
            double_clicks=double_clicks,
            retries=retries,
            follow=follow,
            processes=processes,
            seed=seed,
        ),
        as_json,
    )


def _plan(
    mode: Mode, url: str, tokens: Path, seconds: float, products: list[int] | None, quantity: str, log: Path | None
) -> Plan:
    low, _, high = quantity.partition("-")
    return Plan(
        mode=mode,
        base_url=url,
        tokens=str(tokens.resolve()),
        seconds=seconds,
        products=tuple(products or (1,)),
        quantities=(int(low), int(high or low)),
        log=None if log is None else str(log.resolve()),
    )


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
