"""Runs a stage as a Faust worker with our logging and uvloop."""

from importlib import import_module
from typing import NoReturn

import faust
import uvloop

from infra.scheduling import tune_gc


def run_stage(name: str) -> NoReturn:
    """Run one member of stage `order` or `payment` until a signal. Exits 0 when drained, non-zero after a crash."""
    uvloop.install()  # before the app is made: faust creates the loop early
    app = import_module(f"streams.{name}_stage").app
    app.by_faust = False
    tune_gc()
    worker = faust.Worker(app, loglevel="WARNING", override_logging=False, redirect_stdouts=False, quiet=True)
    worker.spinner = None  # its terminal codes would be in the log
    worker.execute_from_commandline()
    raise SystemExit(0)
