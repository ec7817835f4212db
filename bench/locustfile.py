"""The users of a flash sale for locust: view the product, think, buy, follow the order to its end, think, repeat.

    locust -f bench/locustfile.py                                        the page, http://localhost:8089
    locust -f bench/locustfile.py --headless --shape spike               without it
    python -m bench.load spike                                           product, tokens, run, books and verdict in one

Host and tokens are those of the local stack unless --host and --tokens name others. "Sold out" counts neither as accepted
nor as a failure. Failures are server errors, missing answers, and undocumented answers.
"""

import sys
import time
from pathlib import Path
from typing import Any

import msgspec
from locust import LoadTestShape, events
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner
from locust.stats import CSV_STATS_INTERVAL_SEC

from bench.own_stack import OwnStackFailed, ensure_tokens, get, own_url, thrones
from bench.sale_metrics import Attendance, SaleMetrics, show_progress
from bench.sale_result import ENDS
from bench.sale_text import lines
from bench.sale_user import FOLLOW_S, FlashSaleUser, open_sale, sale_of
from bench.shapes import SHAPES

USERS = 2_000  # tokens to make if there are none
SOLD_OUT_FOR_S = 5.0  # a sell-out ends after this long without an acceptance
SPAWN_RATE = 100  # users a second, the maximum that locust handles well
PROGRESS_INTERVAL_S = 5.0

__all__ = ["FlashSaleUser", "Profile"]  # what locust looks for


def add_options(parser: LocustArgumentParser) -> None:
    """Add our options; they also appear on locust's page."""
    add = parser.add_argument
    add("--shape", choices=sorted(SHAPES), default="reference", env_var="LOAD_SHAPE", help="How many users when.")
    add("--time-scale", type=float, default=1.0, env_var="LOAD_TIME_SCALE", help="0.1: in a tenth of the time.")
    add("--crowd", type=float, default=1.0, env_var="LOAD_CROWD", help="0.1: with a tenth of the users.")
    add("--think", type=float, default=0.3, env_var="LOAD_THINK", help="Seconds before each click.")
    add(
        "--follow",
        choices=["wait", "poll", "stream"],
        default="wait",
        env_var="LOAD_FOLLOW",
        help="An order's end: ?wait=, polling, or its event stream.",
    )
    add("--product", type=int, default=1, env_var="LOAD_PRODUCT", help="Product id.")
    add(
        "--tokens",
        default="",
        env_var="LOAD_TOKENS",
        help="JSON array of bearer tokens; made if empty.",
        include_in_web_ui=False,
    )
    add(
        "--client-log",
        default="",
        env_var="LOAD_CLIENT_LOG",
        help="JSON lines for `thrones audit --client-log`.",
        include_in_web_ui=False,
    )
    add("--result", default="", env_var="LOAD_RESULT", help="The metrics as JSON.", include_in_web_ui=False)


def prepare(environment: Environment, **_: Any) -> None:
    """Make missing tokens and the product, if the host is the local stack."""
    options: Any = environment.parsed_options
    if not isinstance(environment.runner, MasterRunner):
        environment.stop_timeout = environment.stop_timeout or FOLLOW_S  # who has bought sees the order's end
    host = str(environment.host or FlashSaleUser.host).rstrip("/")
    try:
        if not options.tokens and host == own_url():
            if get(f"{host}/api/products/{options.product}")[0] == 404 and options.product == 1:
                thrones("deploy")
            options.tokens = str(ensure_tokens(USERS, host))
    except (OSError, OwnStackFailed) as error:
        sys.exit(f"{host}: {error} - is the stack up? (`make up`; another one: --host and --tokens)")
    if not options.tokens and not isinstance(environment.runner, MasterRunner):
        sys.exit(f"{host} is not the local stack, so --tokens must name its users' tokens")
    open_sale(environment)


def begin(environment: Environment, **_: Any) -> None:
    sale_of(environment).attendance = Attendance()


def report_result(environment: Environment, **_: Any) -> None:
    """After the last user has ended: print the metrics, and write them as JSON if requested."""
    sale = sale_of(environment)
    sale.log.flush()
    if isinstance(environment.runner, WorkerRunner):
        return
    options = sale.options
    result = sale.metrics.result(options.shape, options.follow, float(options.think), sale.attendance)
    if options.result:
        Path(options.result).write_bytes(msgspec.json.encode(result))
    else:
        print("\n".join(("", f"{options.shape}: {result.seconds:.0f} s", *lines(result))))
        print(f"  the books: thrones audit --product {options.product}\n")


def close(environment: Environment, **_: Any) -> None:
    sale = sale_of(environment)
    sale.log.flush()
    if getattr(sale.options, "csv_prefix", None):
        time.sleep(1.5 * CSV_STATS_INTERVAL_SEC)  # locust writes the files so often, and does not once more at the end


class Profile(LoadTestShape):
    """The shape named by --shape or on the page."""

    def tick(self) -> tuple[int, float] | None:
        assert self.runner is not None
        sale = sale_of(self.runner.environment)
        wanted = sale.shape.users_at(time.perf_counter() - float(self.start_time))
        running = self.runner.user_count
        sale.attendance.record(wanted or 0, running)
        if wanted is None or (sale.shape.until_sold_out and _is_sold_out(sale.metrics)):
            return None
        if time.monotonic() - sale.said_s >= PROGRESS_INTERVAL_S:
            sale.said_s = time.monotonic()
            print(show_progress(sale.metrics, sale.attendance, wanted, running), file=sys.stderr, flush=True)
        return wanted, SPAWN_RATE


def _is_sold_out(metrics: SaleMetrics) -> bool:
    """Sold out for a while, and all accepted orders have ended."""
    since_s = metrics.seconds_since("successful_purchases")
    if since_s is None or not metrics.count("out_of_stock_409"):
        return False
    ended = sum(metrics.count(end) for end in ENDS.values())
    return since_s > SOLD_OUT_FOR_S and ended >= metrics.count("successful_purchases")


events.init_command_line_parser.add_listener(add_options)
events.init.add_listener(prepare)
events.test_start.add_listener(begin)
events.test_stop.add_listener(report_result)
events.quitting.add_listener(close)
