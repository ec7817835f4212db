"""`thrones gateway` and `thrones sse`: the parent of API_WORKERS worker processes that share one listening socket.

The parent binds and holds the socket, so a worker that dies or is replaced does not reset waiting connections.
"""

import asyncio
import socket

from infra.lifecycle import Stop
from infra.logs import get_logger
from infra.settings import SigningSettings
from infra.supervision.app_specs import worker_specs
from infra.supervision.ports import bind
from infra.supervision.supervisor import Supervisor

LAST_ACCEPTS_S = 0.05  # the workers accept the queued connections


async def run(settings: SigningSettings, stop: Stop, role: str = "gateway") -> None:
    """Keep the workers running until `stop`; returns when all have drained. Raises StackError if PORT is in use."""
    # It does not listen yet: until a worker does, a client is refused at once, and another gateway can answer it.
    with bind(settings.port, settings.listen_address) as sock:
        port = sock.getsockname()[1]
        supervisor = Supervisor(None)  # a local stack beside it keeps its own record of children
        supervisor.start(worker_specs(role, settings.api_workers, sock.fileno(), port))
        get_logger().info("listening", port=port, workers=settings.api_workers)
        keeping = asyncio.create_task(supervisor.housekeeping())
        await stop.wait()
        keeping.cancel()
        await _refuse_new_connections(sock)
        await supervisor.stop()


async def _refuse_new_connections(sock: socket.socket) -> None:
    """Make the kernel refuse new connections. An open socket would queue connections that no worker accepts.

    The workers close their copies of the socket when they drain. The last close resets the queue, so it is emptied first.
    """
    sock.listen(0)
    await asyncio.sleep(LAST_ACCEPTS_S)
    sock.close()
