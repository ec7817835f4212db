"""Structured logs: JSON for machines, colours on a terminal. No secret is ever logged, and no line per request."""

import logging
import sys
import time
from contextvars import ContextVar
from typing import Any

import structlog
from cachetools import FIFOCache

from infra import tracing

SECRET_KEYS = frozenset({"password", "token", "authorization", "secret", "jwt", "ticket"})
REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)  # of the current HTTP request

REPEAT_AFTER_S = 5.0
REMEMBERED = 1_000  # lines


class Repeats(logging.Filter):
    """Logs a line that a library repeats once every few seconds, with a count. Without a broker each of aiokafka's tasks
    would log each of its attempts: megabytes a minute."""

    def __init__(self) -> None:
        super().__init__()
        # when it was logged, and the repeats since then
        self._logged: FIFOCache[tuple[str, str], tuple[float, int]] = FIFOCache(
            REMEMBERED
        )  # when it was logged, and the repeats since then

    def filter(self, record: logging.LogRecord) -> bool:
        if not isinstance(record.msg, str):  # our own lines are event dictionaries
            return True
        line, now = (record.name, record.getMessage()), time.monotonic()
        logged_at, left_out = self._logged.get(line, (-REPEAT_AFTER_S, 0))
        if now - logged_at < REPEAT_AFTER_S:
            self._logged[line] = (logged_at, left_out + 1)
            return False
        self._logged[line] = (now, 0)
        if left_out:
            record.msg, record.args = f"{line[1]} (and {left_out} times before)", ()
        return True


def _redact(_logger: Any, _method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    for key in event.keys() & SECRET_KEYS:
        event[key] = "[redacted]"
    return event


def _trace_id(_logger: Any, _method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    """Add the trace id of the current order, if it is traced."""
    if (span := tracing.current()) is not None:
        event["trace_id"] = span.trace_id
    return event


def add_request_id(_logger: Any, _method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    """Add the id of the current HTTP request, if there is one."""
    if (request_id := REQUEST_ID.get()) is not None:
        event["request_id"] = request_id
    return event


def configure(role: str, member: str = "1") -> None:
    """Send structlog and stdlib logging of this process to stdout, with `role` and `member` on every line."""

    def name_process(_logger: Any, _method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
        return {
            **event,
            "role": role,
            "member": member,
        }  # not a bound context variable: the threads of libraries have contexts of their own

    shared: list[structlog.types.Processor] = [
        name_process,
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        _redact,
        _trace_id,
        add_request_id,
    ]
    renderer: structlog.types.Processor = (
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)  # prints no local variables
        if sys.stdout.isatty()
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            *shared,
            structlog.processors.format_exc_info,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    _log_through(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.processors.format_exc_info],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )


def _log_through(formatter: logging.Formatter) -> None:
    """Route the libraries' lines as well; of the noisy libraries only warnings."""
    handler = logging.StreamHandler(sys.stdout)
    handler.addFilter(Repeats())
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for noisy in ("aiokafka", "faust", "mode", "kafka", "aiohttp.access", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def get_logger() -> structlog.stdlib.BoundLogger:
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()
    return logger
