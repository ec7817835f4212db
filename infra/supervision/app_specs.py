"""The process specs of our own processes. Needs none of the packages of the local servers."""

import os

from infra.settings import Settings
from infra.supervision.place import REPOSITORY
from infra.supervision.process import ProcessSpec, python


def worker_specs(role: str, workers: int, fd: int, port: int) -> list[ProcessSpec]:
    """Workers (`gateway` or `sse`) that share one listening socket. The parent holds it, so a restart resets no client."""
    return [_app(role, n, role, "--fd", str(fd), fds=(fd,), port=port) for n in range(1, workers + 1)]


def application_specs(settings: Settings) -> list[ProcessSpec]:
    """All our processes except the gateway."""
    return [
        _app("payment-gateway", 1, "payment-gateway"),
        *(stage_spec("order-stage", n) for n in range(1, settings.order_workers + 1)),
        *(stage_spec("payment-stage", n) for n in range(1, settings.payment_workers + 1)),
        _app("projector", 1, "projector"),
        _app("relay", 1, "relay"),
        _app("reconciler", 1, "reconciler"),
    ]


def stage_spec(role: str, member: int) -> ProcessSpec:
    """One member of `order-stage` or `payment-stage`."""
    return _app(role, member, "stage", role.removesuffix("-stage"))


def _app(
    role: str,
    member: int,
    *command: str,
    fds: tuple[int, ...] = (),
    port: int | None = None,
) -> ProcessSpec:
    return ProcessSpec(
        role=role,
        member=str(member),
        argv=python("-m", "thrones", *command),
        env={"PYTHONUNBUFFERED": "1", "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
        fds=fds,
        port=port,
        cwd=REPOSITORY,
    )
