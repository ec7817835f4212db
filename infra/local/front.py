"""`thrones gateway`: binds PORT once and keeps API_WORKERS worker processes on that one listening socket."""

import asyncio

from infra.lifecycle import stop_on_signals
from infra.local.ports import listen
from infra.local.specs import gateway_specs
from infra.local.supervisor import Supervisor
from infra.logs import configure
from infra.settings import Settings

EVERY_INTERFACE = "0.0.0.0"  # noqa: S104 - a container's gateway is reached from outside; the local stack's is not


def run_gateway(settings: Settings) -> None:
    """Until a signal; then every worker drains. Raises StackError when the port is taken."""
    configure("gateway", "front")
    asyncio.run(_run(settings))


async def _run(settings: Settings) -> None:
    listener = listen(settings.port, EVERY_INTERFACE)
    stop = stop_on_signals()
    supervisor = Supervisor(None)
    supervisor.start(gateway_specs(settings.api_workers, listener.fileno(), listener.getsockname()[1]))
    await stop.wait()
    await supervisor.stop()
    listener.close()
