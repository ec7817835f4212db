"""The way of one order through the processes: a W3C `traceparent` in, spans to an OTLP collector out. Off unless asked for.

`on` is None in a process that does not trace: whoever might trace asks that first, and nothing else is paid. Whether an
order is traced is decided once, by the gateway (TRACE_SAMPLE_RATIO); all others follow the header that its records carry.
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
STOP_TIMEOUT_S = 3.0  # a collector that is away delays nobody's end by more
T = TypeVar("T")


class Span:
    """One step of one traced order: current within `with`, which also ends it; or ended by hand."""

    def __init__(self, tracing: "Tracing", span: "OtelSpan") -> None:
        self._tracing = tracing
        self._span = span

    @property
    def trace_id(self) -> str:
        return f"{self._span.get_span_context().trace_id:032x}"

    @property
    def traceparent(self) -> str:
        """What those who come next are told: this step is the parent of theirs."""
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    @property
    def headers(self) -> Headers:
        """Of a record that this step writes."""
        return (VERSION_HEADER, (TRACE_HEADER, self.traceparent.encode()))

    def note(self, **attributes: str | int) -> None:
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
    """What a process that traces holds: one exporter, which sends in a thread of its own and drops what is too much."""

    def __init__(self, settings: "Settings") -> None:
        # Imported here: a process that does not trace does not load it.
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
        """The first step of an order, or None where it is not chosen. A client's trace is continued, but what is chosen is
        not the client's to say: anybody may send the header."""
        if random.random() >= self._ratio:
            return None
        return self._begin(name, traceparent)

    def follow(self, name: str, headers: Iterable[tuple[str, bytes]]) -> Span | None:
        """A step of an order whose record has these headers; None where the order is not traced."""
        for header, value in headers:
            if header == TRACE_HEADER:
                return self._begin(name, value.decode(errors="replace"))
        return None

    def child(self, parent: "OtelSpan", name: str) -> Span:
        return Span(self, self._tracer.start_span(name, self._trace.set_span_in_context(parent)))

    @property
    def current(self) -> Span | None:
        """The step that whoever asks is within."""
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
        """Sends what is left."""
        self._provider.shutdown()


on: Tracing | None = None


def start(settings: "Settings") -> None:
    """Once a process. Nothing is loaded where OTEL_EXPORTER_OTLP_ENDPOINT is not set."""
    global on
    on = Tracing(settings) if settings.otel_exporter_otlp_endpoint else None


def stop() -> None:
    """The last thing that a process does."""
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
    """A part of the current step, if there is one."""
    parent = current()
    if parent is None:
        yield None
        return
    with parent.child(name) as span:
        yield span


def trace_id_of(headers: Iterable[tuple[str, bytes]]) -> str | None:
    """For log lines about a record."""
    found = next((value for name, value in headers if name == TRACE_HEADER), None)
    return None if found is None else found.decode(errors="replace")[3:35]


def headers_of(traced: Traced | None) -> dict[str | bytes, Headers] | None:
    """For `Publisher.publish_all`."""
    return {order_id: span.headers for order_id, span in traced.items()} if traced else None


@contextmanager
def together(name: str, traced: Traced | None) -> Iterator[None]:
    """A step that many orders take at once: a child of each."""
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
