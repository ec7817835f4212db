"""A small OTLP receiver: what processes export over HTTP in, their spans out."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Seen:
    """One exported span; ids are hexadecimal, `parent` is empty where it has none."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    failed: bool


class Collector:
    """Keeps every span it is sent."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.spans: list[Seen] = []
        self._more = threading.Condition()

    def take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        with self._more:
            for resource in request.resource_spans:
                named = {attribute.key: attribute.value.string_value for attribute in resource.resource.attributes}
                self.spans += [
                    Seen(
                        named["service.name"],
                        span.name,
                        span.trace_id.hex(),
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                        span.status.code == 2,
                    )
                    for scope in resource.scope_spans
                    for span in scope.spans
                ]
            self._more.notify_all()

    def trace(self, trace: str, spans: int, within_s: float = 30.0) -> list[Seen]:
        """The spans of one trace once there are so many of them, or what there is by then."""
        until = time.monotonic() + within_s
        with self._more:
            while len(found := [seen for seen in self.spans if seen.trace == trace]) < spans:
                if not self._more.wait(until - time.monotonic()):
                    break
        return found


@contextmanager
def a_collector() -> Iterator[Collector]:
    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.take(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Not a line."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        collector = Collector(server.server_port)
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield collector
        finally:
            server.shutdown()
            serving.join()
