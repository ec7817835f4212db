"""Traces one order through all processes: a W3C `traceparent` in, spans to an OTLP collector out. Off by default.

`on` is None in a process that does not trace; callers check it first, and pay nothing else. The gateway decides once per
order whether to trace it (TRACE_SAMPLE_RATIO); all other processes follow the header of its records.
"""

import random
import threading
from collections.abc import Awaitable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from schemas.codec import TRACE_HEADER, VERSION_HEADER, Headers

if TYPE_CHECKING:
    from opentelemetry.trace import Span as OtelSpan

    from infra.settings import Settings

EXPORT_TIMEOUT_S = 2.0
STOP_TIMEOUT_S = 3.0  # the longest that an absent collector may delay the end of a process
T = TypeVar("T")


class Span:
    """One step of one traced order. `with` makes it current and ends it; otherwise call `end`."""

    def __init__(self, tracing: "Tracing", span: "OtelSpan") -> None:
        self._tracing = tracing
        self._span = span

    @property
    def trace_id(self) -> str:
        return f"{self._span.get_span_context().trace_id:032x}"

    @property
    def traceparent(self) -> str:
        """The header for the next process: this step is the parent of its step."""
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    @property
    def headers(self) -> Headers:
        """The headers of a record that this step writes."""
        return (VERSION_HEADER, (TRACE_HEADER, self.traceparent.encode()))

    def set_attributes(self, **attributes: str | int) -> None:
        self._span.set_attributes(attributes)

    def child(self, name: str) -> "Span":
        return self._tracing.child(self._span, name)

    def end(self, error: BaseException | None = None) -> None:
        if error is not None:
            self._span.record_exception(error)
            self._span.set_status(self._tracing.failed, type(error).__name__)
        self._span.end()

    async def around(self, work: Awaitable[T]) -> T:
        with self:
            return await work

    def __enter__(self) -> Self:
        self._token = self._tracing.enter(self._span)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tracing.leave(self._token)
        self.end(error)


Traced = Mapping[str, Span]
"""The traced orders of a batch, by order id."""


class Tracing:
    """The tracer of a process: one exporter, which sends in its own thread and drops spans when it has too many."""

    def __init__(self, settings: "Settings") -> None:
        # Imported here: a process that does not trace does not load OpenTelemetry.
        from opentelemetry import context, trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._ratio = settings.trace_sample_ratio
        self._context, self._trace = context, trace
        self._extract = TraceContextTextMapPropagator().extract
        self.failed = trace.StatusCode.ERROR
        who = {"service.name": f"thrones-{settings.thrones_role}", "service.instance.id": settings.thrones_member}
        self._provider = TracerProvider(resource=Resource.create(who), shutdown_on_exit=False)
        endpoint = settings.otel_exporter_otlp_endpoint.rstrip("/") + "/v1/traces"
        exporter = OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_TIMEOUT_S)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("thrones")

    def sample(self, name: str, traceparent: str | None) -> Span | None:
        """The first step of an order, or None if it is not sampled. A client's trace is continued, but the client does not
        decide what is sampled: anybody may send the header."""
        if random.random() >= self._ratio:
            return None
        return self._begin(name, traceparent)

    def follow(self, name: str, headers: Iterable[tuple[str, bytes]]) -> Span | None:
        """A step of an order whose record has these headers; None if the order is not traced."""
        for header, value in headers:
            if header == TRACE_HEADER:
                return self._begin(name, value.decode(errors="replace"))
        return None

    def child(self, parent: "OtelSpan", name: str) -> Span:
        return Span(self, self._tracer.start_span(name, self._trace.set_span_in_context(parent)))

    @property
    def current(self) -> Span | None:
        """The current step."""
        span = self._trace.get_current_span()
        return Span(self, span) if span.is_recording() else None

    def enter(self, span: "OtelSpan") -> Any:
        return self._context.attach(self._trace.set_span_in_context(span))

    def leave(self, token: Any) -> None:
        self._context.detach(token)

    def _begin(self, name: str, traceparent: str | None) -> Span:
        parent = self._extract({TRACE_HEADER: traceparent or ""}, self._context.Context())
        return Span(self, self._tracer.start_span(name, parent))

    def close(self) -> None:
        """Send the remaining spans."""
        self._provider.shutdown()


on: Tracing | None = None


def start(settings: "Settings") -> None:
    """Call it once per process. It loads nothing unless OTEL_EXPORTER_OTLP_ENDPOINT is set."""
    global on
    on = Tracing(settings) if settings.otel_exporter_otlp_endpoint else None


def stop() -> None:
    """Call it last in a process."""
    global on
    tracing, on = on, None
    if tracing is not None:
        sending = threading.Thread(target=tracing.close, daemon=True)
        sending.start()
        sending.join(STOP_TIMEOUT_S)


def current() -> Span | None:
    return None if on is None else on.current


@contextmanager
def step(name: str) -> Iterator[Span | None]:
    """A part of the current step, if there is a current step."""
    parent = current()
    if parent is None:
        yield None
        return
    with parent.child(name) as span:
        yield span


def trace_id_of(headers: Iterable[tuple[str, bytes]]) -> str | None:
    """The trace id for log lines about a record."""
    found = next((value for name, value in headers if name == TRACE_HEADER), None)
    return None if found is None else found.decode(errors="replace")[3:35]


def headers_of(traced: Traced | None) -> dict[str | bytes, Headers] | None:
    """For `Publisher.publish_all`."""
    return {order_id: span.headers for order_id, span in traced.items()} if traced else None


@contextmanager
def batch_step(name: str, traced: Traced | None) -> Iterator[None]:
    """A step that a batch of orders takes at once: a child of each order's step."""
    steps = [span.child(name) for span in traced.values()] if traced else []
    error: BaseException | None = None
    try:
        yield
    except BaseException as raised:
        error = raised
        raise
    finally:
        for step in steps:
            step.end(error)
