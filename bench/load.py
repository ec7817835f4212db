"""One complete load test: makes a product and users, runs a shape, audits, and evaluates the reference's criteria.

    python -m bench.load reference                       5 minutes, 300 users
    python -m bench.load sell-out --scale 0.1            make load SHAPE=sell-out ARGS="--scale 0.1"

Results go to .thrones/results/TIME-SHAPE/. Exit 0 when the books balance, 1 when they do not, 2 when there was no run;
with --strict also 3 when a criterion is not met.
"""

import json
import os
import resource
import subprocess
import sys
import time
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from infra.commands import SingleCommand
from infra.supervision.place import REPOSITORY, default_state_dir

from . import run_card
from .criteria import Criterion, judge
from .criteria import show as show_criteria
from .own_stack import OwnStackFailed, ensure_tokens, get, own_url, thrones
from .run_card import RunCard
from .sale_result import SaleResult
from .sale_text import lines
from .shapes import SHAPES

PRICE = "999.99"
LOCUSTFILE = REPOSITORY / "bench" / "locustfile.py"
REST_S = 180.0  # beyond the shape's own time: the start, and users who wait for the end of their last order


class ShapeName(StrEnum):
    """The shapes; a test keeps them equal to SHAPES."""

    REFERENCE = "reference"
    SPIKE = "spike"
    STEP = "step"
    SOAK = "soak"
    SELL_OUT = "sell-out"


class Follow(StrEnum):
    """How users see an order's end."""

    WAIT = "wait"
    POLL = "poll"
    STREAM = "stream"


class NoRun(Exception):
    """Locust left no result."""


class GeneratorLoad(msgspec.Struct, frozen=True, kw_only=True):
    """The generator's own load. Near one core per process, or late, it has measured itself."""

    processes: int
    cpu_s: float
    cpu_share: float  # of one core per process
    late_p99_ms: float  # delay of a click after its intended time


class LoadReport(msgspec.Struct, frozen=True, kw_only=True):
    """`result.json`. `books` is the product's part of `thrones audit`; the product is this run's alone."""

    card: RunCard
    shape: str
    time_scale: float
    crowd: float
    product: int
    stock: int
    offered_per_s: float
    achieved_per_s: float
    generator: GeneratorLoad
    result: SaleResult
    books: dict[str, Any] | None
    books_balance: bool
    problems: list[str]
    criteria: list[Criterion]


class LoadPlan(msgspec.Struct, frozen=True, kw_only=True):
    shape: str
    time_scale: float
    crowd: float
    follow: str
    think_s: float
    stock: int
    users: int
    processes: int
    audit_wait_s: float
    folder: Path


def run(plan: LoadPlan) -> LoadReport:
    """Raises CommandFailed, NoRun, or OSError when there is no stack."""
    url = own_url()
    card = run_card.take()
    plan.folder.mkdir(parents=True, exist_ok=True)
    product = _new_product(url, plan)
    tokens = ensure_tokens(plan.users, url)
    result, cpu_s, took_s = _locust(url, plan, product, tokens)
    audit = _audit(plan, product)
    books = next((found for found in audit.get("products", []) if found["product_id"] == product), None)
    count = max(1, plan.processes)
    return LoadReport(
        card=card,
        shape=plan.shape,
        time_scale=plan.time_scale,
        crowd=plan.crowd,
        product=product,
        stock=plan.stock,
        offered_per_s=round(result.offered_per_s, 1),
        achieved_per_s=round(result.achieved_per_s, 1),
        generator=GeneratorLoad(
            processes=count,
            cpu_s=round(cpu_s, 1),
            cpu_share=round(cpu_s / took_s / count, 3),
            late_p99_ms=result.of("generator_late").p99_ms,
        ),
        result=result,
        books=books,
        books_balance=bool(audit["ok"]) and books is not None,
        problems=list(audit["problems"]),
        criteria=judge(result, books),
    )


def _new_product(url: str, plan: LoadPlan) -> int:
    """Create a product for this run only, so that its books contain only this run."""
    status, body = get(f"{url}/api/products")
    if status != 200 or body is None:
        raise OwnStackFailed(f"{url}/api/products answers {status}")
    product = 1 + max((int(found["id"]) for found in body["products"]), default=1)  # 1 is the reference's
    arguments = ("--id", str(product), "--name", f"Load test {product}", "--price", PRICE, "--stock", str(plan.stock))
    thrones("product", "create", *arguments)
    return product


def _locust(url: str, plan: LoadPlan, product: int, tokens: Path) -> tuple[SaleResult, float, float]:
    """The result, and the CPU and wall-clock seconds of the load generator."""
    found = plan.folder / "users.json"
    options = {
        "host": url,
        "shape": plan.shape,
        "time-scale": plan.time_scale,
        "crowd": plan.crowd,
        "follow": plan.follow,
        "think": plan.think_s,
        "product": product,
        "tokens": tokens,
        "client-log": plan.folder / "clients.jsonl",
        "result": found,
        "csv": plan.folder / "locust",
        "html": plan.folder / "locust.html",
        "json-file": plan.folder / "locust",
        "logfile": plan.folder / "locust.log",
        "exit-code-on-error": 0,
        **({"processes": plan.processes} if plan.processes > 1 else {}),
    }
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary", *arguments]
    started_s, cpu_before_s = time.monotonic(), _children_cpu_s()
    timeout_s = SHAPES[plan.shape].seconds * plan.time_scale + REST_S
    done = subprocess.run(
        command, cwd=REPOSITORY, env=_environment(), stdout=sys.stderr, timeout=timeout_s, check=False
    )
    if done.returncode or not found.exists():
        raise NoRun(f"locust ended with {done.returncode}; see {plan.folder / 'locust.log'}")
    result = msgspec.json.decode(found.read_bytes(), type=SaleResult)
    found.unlink()  # it is in result.json
    return result, _children_cpu_s() - cpu_before_s, time.monotonic() - started_s


def _environment() -> dict[str, str]:
    """Our environment without LOCUST_ and LOAD_ variables: only the command's options count."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LOCUST_", "LOAD_"))}
    return {**kept, "THRONES_STATE_DIR": str(default_state_dir())}


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _audit(plan: LoadPlan, product: int) -> dict[str, Any]:
    log = plan.folder / "clients.jsonl"
    log.touch()
    wait_s = plan.audit_wait_s
    arguments = ("--product", str(product), "--wait", str(wait_s), "--client-log", str(log), "--json")
    answer = thrones("audit", *arguments, timeout_s=wait_s + 120, failing=True)
    report: dict[str, Any] = json.loads(answer.splitlines()[0])
    return report


def exit_code(report: LoadReport, strict: bool) -> int:
    """0, 1: the books do not balance, 3: strict and a criterion is not met."""
    if not report.books_balance:
        return 1
    return 3 if strict and any(criterion.met is not True for criterion in report.criteria) else 0


def show(report: LoadReport, folder: Path) -> str:
    result, generator = report.result, report.generator
    books = "the books balance" if report.books_balance else "THE BOOKS DO NOT BALANCE"
    return "\n".join(
        (
            f"\n{report.shape}: {result.seconds:.0f} s, up to {result.users_peak} users"
            f" (mean {result.users_running:.0f} of {result.users_planned:.0f} planned),"
            f" {report.stock:,} units of product {report.product}",
            *run_card.show(report.card),
            "",
            f"  clicks: offered {report.offered_per_s:,.0f}/s, achieved {report.achieved_per_s:,.0f}/s"
            f" (think {result.think_s} s; orders followed by {result.follow})",
            f"  generator: {generator.cpu_share:.0%} of a core a process ({generator.processes}),"
            f" p99 {generator.late_p99_ms:,.0f} ms late",
            "",
            *lines(result),
            "",
            show_criteria(report.criteria),
            f"  {books}" + "".join(f"\n    {problem}" for problem in report.problems[:20]),
            f"  {folder}",
        )
    )


SUMMARIES = "; ".join(f"{shape.name}: {shape.summary}" for shape in SHAPES.values())
HOW = "How users see an order's end: ?wait=, polling every second, or its event stream."

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(cls=SingleCommand)
def main(
    shape: Annotated[ShapeName, typer.Argument(help=SUMMARIES)],
    scale: Annotated[float, typer.Option("--scale", min=0.001, help="0.1: in a tenth of the time.")] = 1.0,
    crowd: Annotated[float, typer.Option("--crowd", min=0.001, help="0.1: with a tenth of the users.")] = 1.0,
    follow: Annotated[Follow, typer.Option("--follow", help=HOW)] = Follow.WAIT,
    think: Annotated[float, typer.Option("--think", min=0, help="Seconds before each click.")] = 0.3,
    stock: Annotated[int | None, typer.Option("--stock", min=0, help="Units; the shape's own if absent.")] = None,
    users: Annotated[int, typer.Option("--users", min=1, help="Tokens; users beyond them share.")] = 2_000,
    processes: Annotated[int, typer.Option("--processes", min=1, help="Load-generator processes.")] = 1,
    audit_wait: Annotated[
        float, typer.Option("--audit-wait", min=0, help="Seconds for the books to get quiet.")
    ] = 60.0,
    out: Annotated[Path | None, typer.Option("--out", help="Folder; .thrones/results/TIME-SHAPE if absent.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 3 when a criterion is not met.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Run one complete load test: product, users, load, audit and the reference's criteria.

    Results go to .thrones/results/TIME-SHAPE/. Exit 0: the books balance; 1: they do not; 2: no run; 3: a criterion failed (--strict).

    Example: python -m bench.load reference --scale 0.2
    """
    folder = out or default_state_dir() / "results" / f"{datetime.now():%Y%m%d-%H%M%S}-{shape.value}"
    plan = LoadPlan(
        shape=shape.value,
        time_scale=scale,
        crowd=crowd,
        follow=follow.value,
        think_s=think,
        stock=SHAPES[shape.value].stock if stock is None else stock,
        users=users,
        processes=processes,
        audit_wait_s=audit_wait,
        folder=folder.absolute(),
    )
    report = _run_or_exit(plan)
    encoded = msgspec.json.encode(report)
    (folder / "result.json").write_bytes(msgspec.json.format(encoded, indent=2))
    typer.echo(encoded.decode() if as_json else show(report, folder))
    raise typer.Exit(exit_code(report, strict))


def _run_or_exit(plan: LoadPlan) -> LoadReport:
    """Exits with 2 if there was no run."""
    try:
        return run(plan)
    except OSError as error:
        typer.echo(f"{own_url()}: {error} - is the stack up? (`thrones status`, `make up`)", err=True)
    except (OwnStackFailed, NoRun, subprocess.TimeoutExpired) as error:
        typer.echo(str(error), err=True)
    raise typer.Exit(2)


if __name__ == "__main__":
    app()
