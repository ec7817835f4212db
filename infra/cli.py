"""What every command shares: run against the stack that is there or say plainly why not; print for people or machines."""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, NoReturn, TypeVar

import typer

Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
T = TypeVar("T")


def run_command(main: Callable[[], Coroutine[Any, Any, T]], *, busy: bool = False) -> T:
    """Run one command in the environment of the local stack, if there is one; what fails is said in one line, exit 1.

    Values of the real environment win over the stack's. `busy`: worth uvloop.
    """
    import asyncpg
    from aiokafka.errors import KafkaError
    from redis.exceptions import RedisError

    from infra.inventory.rebuild import RebuildImpossible
    from infra.local.ports import StackError
    from infra.local.stack import use_stack_env
    from infra.operations import Refused

    _log_to_stderr()
    try:
        use_stack_env()
        with asyncio.Runner(loop_factory=_uvloop() if busy else None) as runner:
            return runner.run(main())
    except (Refused, RebuildImpossible, StackError) as error:
        fail(str(error))
    except (RedisError, KafkaError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        fail(f"{type(error).__name__}: {error or 'no answer'} - is the stack up? (`thrones status`, `make up`)")
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _uvloop() -> Callable[[], asyncio.AbstractEventLoop]:
    import uvloop

    return uvloop.new_event_loop


def _log_to_stderr() -> None:
    """A command's output is its own: warnings go beside it, the rest nowhere."""
    import logging

    import structlog

    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logging.getLogger("pogo_core").setLevel(logging.ERROR)  # it warns of each migration that it applies


def raise_file_limit() -> None:
    """As many open files as the system allows this process."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def fail(text: str) -> NoReturn:
    """Say why on stderr and exit 1."""
    print(text, file=sys.stderr)
    raise SystemExit(1)


def report(value: Any, text: str, as_json: bool) -> None:
    """`value` as one JSON document, or `text`."""
    import msgspec

    typer.echo(msgspec.json.encode(value).decode() if as_json else text)
