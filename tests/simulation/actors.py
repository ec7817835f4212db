"""Processes of the simulation: what one does between two effects can end anywhere, and what is dead has no more effects."""

import asyncio
from collections.abc import Coroutine
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from typing import Any

CURRENT: ContextVar["Actor"] = ContextVar("actor")


@dataclass(eq=False)
class Actor:
    """One process: its tasks, and theirs, since children inherit the context they were created in."""

    name: str
    alive: bool = True
    paused_until_s: float = 0.0
    tasks: dict[asyncio.Task[Any], None] = field(default_factory=dict)  # in the order of creation

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        context = copy_context()
        context.run(CURRENT.set, self)
        return asyncio.get_running_loop().create_task(work, context=context)

    def kill(self) -> None:
        """As by kill -9: its code may unwind, but its ports are closed, so nothing of that is ever seen."""
        self.alive = False
        for task in list(self.tasks):
            task.cancel()


def task_factory(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task[Any]:
    """Enters every task with the actor in whose context it is created."""
    task = asyncio.Task(work, loop=loop, **options)
    context = options.get("context")
    actor = context.get(CURRENT) if context is not None else CURRENT.get(None)
    if actor is not None:
        actor.tasks[task] = None
        task.add_done_callback(lambda done: actor.tasks.pop(done, None))
    return task
