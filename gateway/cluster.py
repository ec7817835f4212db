"""`thrones gateway`: a port in, API_WORKERS worker processes that share one listening socket out.

The parent binds the socket and holds it, so that a worker that dies or is replaced resets no waiting connection.
"""

import asyncio

from infra.lifecycle import Stop
from infra.local.ports import listen
from infra.local.specs import gateway_specs
from infra.local.supervisor import Supervisor
from infra.logs import get_logger
from infra.settings import SigningSettings


async def run(settings: SigningSettings, stop: Stop) -> None:
    """Keep the workers running until `stop`; returns when all have drained. Raises StackError where PORT is in use."""
    with listen(settings.port, settings.listen_address) as sock:
        port = sock.getsockname()[1]
        supervisor = Supervisor(None)  # a local stack beside us keeps its own list of children
        supervisor.start(gateway_specs(settings.api_workers, sock.fileno(), port))
        get_logger().info("listening", port=port, workers=settings.api_workers)
        keeping = asyncio.create_task(supervisor.housekeeping())
        await stop.wait()
        keeping.cancel()
        await supervisor.stop()
