"""The supervisor process of a local stack: starts the servers, makes the schema and topics, then runs the applications."""

import asyncio
import os
import resource
import sys
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import NoReturn

from aiokafka.errors import KafkaError

from infra.kafka.warming import warm_up
from infra.lifecycle import Stop, stop_on_signals
from infra.local.config import StackConfig, load_config
from infra.local.readiness import store_former_members
from infra.local.specs import server_specs
from infra.local.targets import keep_targets
from infra.logs import configure, get_logger
from infra.metrics.serving import serve
from infra.metrics.vitals import report_vitals
from infra.settings import Settings, get_settings
from infra.supervision import registry
from infra.supervision.app_specs import application_specs, worker_specs
from infra.supervision.lock import supervisor_lock
from infra.supervision.phase import SERVERS_ONLY, Phase, write_phase
from infra.supervision.ports import StackError, bind
from infra.supervision.process import ProcessSpec
from infra.supervision.scaling import keep_sizes
from infra.supervision.supervisor import Supervisor

SERVERS_DEADLINE_S = 50.0


Provision = Callable[[], Awaitable[None]]


def run(provision: Provision, *, servers_only: bool, tied: bool) -> NoReturn:
    """Run until a signal, or with `tied` until the launching process ends. `provision` makes the schema and the topics."""
    configure("supervisor")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    get_logger().info("supervisor", file_limit=hard, file_limit_was=soft)
    state_dir = get_settings().thrones_state_dir
    with supervisor_lock(state_dir):
        sys.exit(asyncio.run(_run(state_dir, None if servers_only else provision, tied)))


async def _run(state_dir: Path, provision: Provision | None, tied: bool) -> int:
    config = load_config(state_dir)
    if config is None:
        raise SystemExit("no stack.json: start with `thrones up`")
    stop = stop_on_signals()
    registry.register("supervisor", port=serve(get_settings()))
    supervisor = Supervisor(state_dir)
    servers = server_specs(config, state_dir)
    beside = [supervisor.housekeeping(), keep_sizes(supervisor, state_dir), keep_targets(state_dir), report_vitals()]
    tasks = [asyncio.create_task(each) for each in (*beside, *([_watch_parent(stop)] if tied else []))]
    try:
        await _wait_until_stopped(stop, _boot(supervisor, servers, config, state_dir, provision))
        return 0
    except StackError as error:
        get_logger().error("the stack did not start", error=str(error))
        write_phase(state_dir, Phase("failed", str(error)))
        return 1
    finally:
        for task in tasks:
            task.cancel()
        names = {spec.name for spec in servers}
        await supervisor.stop(spec for spec in supervisor.specs if spec.name not in names)
        await supervisor.stop()
        (registry.run_dir(state_dir) / "supervisor-1.json").unlink(missing_ok=True)


async def _wait_until_stopped(stop: Stop, boot: Coroutine[None, None, None]) -> None:
    booting = asyncio.create_task(boot)
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({booting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if booting.done():
        booting.result()
        await stopping
    else:
        booting.cancel()


async def _watch_parent(stop: Stop) -> None:
    parent = os.getppid()
    while not await stop.sleep(0.5):
        if parent != os.getppid():
            stop.set()


async def _boot(
    supervisor: Supervisor,
    servers: list[ProcessSpec],
    config: StackConfig,
    state_dir: Path,
    provision: Provision | None,
) -> None:
    write_phase(state_dir, Phase("starting Kafka, Redis and Postgres"))
    supervisor.start(servers)
    await supervisor.wait_healthy(servers, SERVERS_DEADLINE_S)
    if provision is None:
        write_phase(state_dir, Phase("running", SERVERS_ONLY))
        return
    write_phase(state_dir, Phase("applying migrations, creating topics"))
    await _provision(provision)
    await store_former_members(config, state_dir)
    listener = bind(config.port)  # the first worker listens on it: until then clients are refused at once
    settings = get_settings()
    supervisor.start(application_specs(settings))
    supervisor.start(worker_specs("gateway", settings.api_workers, listener.detach(), config.port))
    await _warm_up(settings)
    write_phase(state_dir, Phase("running"))


async def _warm_up(settings: Settings) -> None:
    """While our processes start: a first sale then finds warm brokers. Only speed depends on it."""
    if settings.warm_up_s:
        try:
            await warm_up(settings, settings.warm_up_s)
        except (KafkaError, TimeoutError) as error:
            get_logger().warning("the brokers were not warmed up", error=str(error))


async def _provision(provision: Provision) -> None:
    try:
        await provision()
    except Exception as error:  # after any error the stack cannot run; `thrones up` shows the text
        get_logger().exception("provisioning failed")
        raise StackError(f"migrations or topics failed: {type(error).__name__}: {error}") from error
