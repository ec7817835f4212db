"""Shared by all commands: run against the stack that is there, print for people or machines, report errors in one line.

An error goes to standard error. A usage error exits with 2, a command that cannot be carried out with 1.
"""

import asyncio
import sys
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

from infra.errors import CommandFailed
from infra.servers import Server

Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
T = TypeVar("T")
STACK_UP = "is the stack up? (`thrones status`, `make up`)"


_before: list[Callable[[], object]] = []


def before_each_command(prepare: Callable[[], object]) -> None:
    """Register what runs before each command: it finds the local stack. In production nothing is registered."""
    _before.append(prepare)


class _OneLineErrors:
    """Prints a usage error in one line; Typer would print a box of several lines."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        try:
            code = super().main(  # type: ignore[misc]  # of the command or group it is mixed into
                args, prog_name, complete_var, False, windows_expand_args, **extra
            )
        except TyperException as error:
            _print_usage_error(error)
            code = error.exit_code
        except typer.Abort:
            fail("aborted")
        if standalone_mode:
            sys.exit(code if isinstance(code, int) else 0)
        return code


class SingleCommand(_OneLineErrors, TyperCommand):
    """A program that is one command: `app.command(cls=SingleCommand)`."""


class Commands(_OneLineErrors, TyperGroup):
    """The root of a command line: `typer.Typer(cls=Commands)`."""


def _print_usage_error(error: TyperException) -> None:
    text = " ".join(error.format_message().replace("Value error, ", "").split())
    context = getattr(error, "ctx", None)
    if text:  # none where a group was named without a command: that has printed its help
        print(f"{context.command_path if context else 'thrones'}: {text}", file=sys.stderr)


def run_command(
    main: Callable[[], Coroutine[Any, Any, T]], *, asks: Collection[Server] = tuple(Server), busy: bool = False
) -> T:
    """Run one command in the environment of the local stack, if there is one. A failure is one line and exit 1.

    The real environment wins over the stack's values. `asks`: servers that must answer before the command begins, so that
    a server that hangs is named once, after a few seconds. `busy`: the command does enough work to use uvloop.
    """
    import asyncpg
    from aiokafka.errors import KafkaError
    from redis.exceptions import RedisError

    from infra.reach import ServersUnreachable

    _log_to_stderr()
    try:
        for prepare in _before:
            prepare()
        with asyncio.Runner(loop_factory=_uvloop() if busy else None) as runner:
            return runner.run(_run(main, asks))
    except CommandFailed as error:
        fail(str(error))
    except ServersUnreachable as error:
        fail(f"{error} - {STACK_UP}")
    except asyncpg.UndefinedTableError as error:
        fail(f"{error}: `thrones deploy` creates the missing parts of the schema")
    except (RedisError, KafkaError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        fail(f"{type(error).__name__}: {error or 'no answer'} - {STACK_UP}")
    except KeyboardInterrupt:
        raise SystemExit(130) from None


async def _run(main: Callable[[], Coroutine[Any, Any, T]], asks: Collection[Server]) -> T:
    from infra.reach import require_reachable
    from infra.settings import get_settings

    if asks:
        await require_reachable(get_settings(), asks)
    return await main()


def _uvloop() -> Callable[[], asyncio.AbstractEventLoop]:
    import uvloop

    return uvloop.new_event_loop


def _log_to_stderr() -> None:
    """Warnings go to standard error, all lower levels are dropped: standard output is for the command's result."""
    import logging

    import structlog

    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logging.getLogger("pogo_core").setLevel(logging.ERROR)  # it warns about each migration that it applies
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # it also logs each error that it raises


def raise_file_limit() -> None:
    """Raise the soft limit of open files to the hard limit."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def fail(text: str) -> NoReturn:
    """Print the reason on standard error, in one line, and exit with 1."""
    print(f"thrones: {' '.join(text.split())}", file=sys.stderr)
    raise SystemExit(1)


def report(value: Any, text: str, as_json: bool) -> None:
    """Print `value` as one JSON document, or `text`."""
    import msgspec

    typer.echo(msgspec.json.encode(value).decode() if as_json else text)
