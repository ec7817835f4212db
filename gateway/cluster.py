"""`thrones gateway` and `thrones sse`: a port in, API_WORKERS worker processes that share one listening socket out.

The parent binds the socket and holds it, so that a worker that dies or is replaced resets no waiting connection.
"""

import asyncio
import socket

from infra.lifecycle import Stop
from infra.logs import get_logger
from infra.settings import SigningSettings
from infra.supervision.app_specs import worker_specs
from infra.supervision.ports import bind
from infra.supervision.supervisor import Supervisor

LAST_ACCEPTS_S = 0.05  # the workers take what is queued


async def run(settings: SigningSettings, stop: Stop, role: str = "gateway") -> None:
    """Keep the workers running until `stop`; returns when all have drained. Raises StackError where PORT is in use."""
    # Not listening yet: requests to a gateway whose workers are still starting would wait, where another could answer.
    with bind(settings.port, settings.listen_address) as sock:
        port = sock.getsockname()[1]
        supervisor = Supervisor(None)  # a local stack beside us keeps its own list of children
        supervisor.start(worker_specs(role, settings.api_workers, sock.fileno(), port))
        get_logger().info("listening", port=port, workers=settings.api_workers)
        keeping = asyncio.create_task(supervisor.housekeeping())
        await stop.wait()
        keeping.cancel()
        await _refuse_new_connections(sock)
        await supervisor.stop()


async def _refuse_new_connections(sock: socket.socket) -> None:
    """Held open, the socket would go on queueing connections that no worker accepts; a balancer waits for each in vain.

    The workers close theirs as they drain, and with the last one the queue is reset: it is kept empty before that.
    """
    sock.listen(0)
    await asyncio.sleep(LAST_ACCEPTS_S)
    sock.close()
